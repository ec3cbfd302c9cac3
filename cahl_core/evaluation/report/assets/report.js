for (const box of document.querySelectorAll(".folds")) {
  const label = box.querySelector(".filter");
  if (!label) continue;
  const items = [...box.querySelectorAll("details")];
  const none = box.querySelector(".none");
  label.hidden = items.length < 2;
  label.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const item of items) {
      const text = item.textContent.toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
      shown += !item.hidden;
    }
    none.hidden = shown > 0;
  });
}
