"use strict";
// Everything that comes from data is set as text, never as markup. Records stay JSON text in the
// page until they are opened, rows until they are scrolled to: thousands of trees stay quick.
(() => {
  const $ = (id) => document.getElementById(id);
  const index = JSON.parse($("index").textContent);
  const CHUNK = 200;
  const COLUMNS = [
    ["step", "step", true], ["task", "task", false], ["plans", "plans", true],
    ["best", "best", true], ["mean", "mean", true], ["executor", "executor", true],
    ["unparsed", "unparsed", true], ["flat", "flat", true],
  ];
  const TITLES = {
    best: "highest reward of a plan (of an execution without a planner)", mean: "mean reward of the plans",
    executor: "mean reward of the executions", unparsed: "texts outside the grammar",
    flat: "groups whose rewards are all equal, of all groups: these teach nothing",
  };
  let shown = [], drawn = 0, chosen = -1, sort = { key: "step", down: false };

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined) continue;
      if (key === "class") node.className = value;
      else if (key === "on") for (const [name, f] of Object.entries(value)) node.addEventListener(name, f);
      else node.setAttribute(key, value);
    }
    node.append(...children.flat().filter((c) => c !== null && c !== undefined));
    return node;
  }
  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const json = (value) => JSON.stringify(value);
  const call = (c) => c.name + "(" + Object.entries(c.arguments).map(([k, v]) => k + "=" + json(v)).join(", ") + ")";

  // --- filters and the list ---------------------------------------------------------------------

  const bound = (id) => ($(id).value === "" ? null : Number($(id).value));
  function query() {
    return {
      words: $("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean),
      from: bound("step-from"), to: bound("step-to"), source: $("source").value, tool: $("tool").value,
      role: $("role").value, min: bound("min"), max: bound("max"),
      unparsed: $("unparsed").checked, flat: $("flat").checked,
    };
  }
  const best = (row, role) => (role === "executor" ? row.executor_best : role === "planner" ? row.planner_best : row.best);
  function matches(row, q) {
    const reward = best(row, q.role);
    return (q.from === null || row.step >= q.from) && (q.to === null || row.step <= q.to)
      && (!q.source || row.source === q.source) && (!q.tool || row.tools.includes(q.tool))
      && (q.min === null || (reward !== null && reward >= q.min))
      && (q.max === null || (reward !== null && reward <= q.max))
      && (!q.unparsed || unparsed(row, q.role) > 0) && (!q.flat || flat(row, q.role) > 0)
      && q.words.every((word) => row.text.includes(word));
  }
  const unparsed = (row, role) => (role === "planner" ? 0 : row.executor_unparsed) + (role === "executor" ? 0 : row.planner_unparsed);
  const flat = (row, role) => (role === "planner" ? 0 : row.executor_flat) + (role === "executor" ? 0 : row.planner_flat);
  const groups = (row, role) => (role === "planner" ? 0 : row.executor_groups) + (role === "executor" ? 0 : row.planner_groups);

  function value(row, key, role) {
    if (key === "unparsed") return unparsed(row, role);
    if (key === "flat") return flat(row, role);
    if (key === "best") return best(row, role);
    return row[key];
  }
  function refresh() {
    const q = query(), kept = chosen >= 0 ? shown[chosen] : null;
    shown = index.map((row, i) => i).filter((i) => matches(index[i], q));
    shown.sort((a, b) => {
      const [x, y] = [value(index[a], sort.key, q.role), value(index[b], sort.key, q.role)];
      if (x === y) return a - b;
      if (x === null) return 1;
      if (y === null) return -1;
      return (x < y ? -1 : 1) * (sort.down ? -1 : 1);
    });
    $("counts").textContent = shown.length === index.length
      ? index.length + (index.length === 1 ? " tree" : " trees") : shown.length + " of " + index.length + " trees";
    $("rows").replaceChildren();
    drawn = 0;
    draw();
    $("empty").hidden = shown.length > 0;
    $("empty").textContent = index.length
      ? "No tree matches: the filters hide all " + index.length + "."
      : "This page was written from no trees: the run traced none, or none matched.";
    header();
    const again = shown.indexOf(kept);
    if (shown.length) choose(again >= 0 ? again : 0, again < 0);
    else { chosen = -1; $("detail").replaceChildren(el("p", { class: "empty" }, "No tree to show.")); }
  }
  function header() {
    $("head").replaceChildren(...COLUMNS.map(([key, title, right]) => {
      const here = sort.key === key;
      const button = el("button", { type: "button", title: TITLES[key], on: { click: () => {
        sort = { key, down: here ? !sort.down : right && key !== "step" };
        refresh();
      } } }, title + (here ? (sort.down ? " ↓" : " ↑") : ""));
      return el("th", { class: right ? "number" : "task", scope: "col", "aria-sort": here ? (sort.down ? "descending" : "ascending") : "none" }, button);
    }));
  }
  function draw() {
    const role = $("role").value;
    const rows = shown.slice(drawn, drawn + CHUNK).map((i, k) => {
      const row = index[i], place = drawn + k;
      const right = (text) => el("td", { class: "number" }, text);
      return el("tr", { "aria-selected": String(place === chosen), on: { click: () => choose(place) } },
        right(String(row.step)),
        el("td", { class: "task", title: row.task }, row.task, el("span", { class: "request" }, row.request || "(no request)")),
        right(String(row.plans)), right(number(best(row, role))), right(number(row.mean)), right(number(row.executor)),
        right(String(unparsed(row, role))), right(flat(row, role) + "/" + groups(row, role)));
    });
    $("rows").append(...rows);
    drawn += rows.length;
  }
  function choose(place, toTop = true) {
    while (place >= drawn && drawn < shown.length) draw();
    const rows = $("rows").children;
    if (rows[chosen]) rows[chosen].setAttribute("aria-selected", "false");
    chosen = place;
    rows[place].setAttribute("aria-selected", "true");
    rows[place].scrollIntoView({ block: "nearest" });
    history.replaceState(null, "", "#" + shown[place]);
    detail(shown[place]);
    if (toTop) $("detail").scrollTop = 0;
  }

  // --- one tree -------------------------------------------------------------------------------

  function detail(i) {
    const record = JSON.parse($("r" + i).textContent), task = record.task, role = $("role").value;
    const gold = task.gold.map((c, k) => {
      const same = json(c) === json(task.resolved[k]);
      return el("div", {}, el("code", {}, "gold " + (k + 1) + "  " + call(c) + (same ? "" : "  =  " + call(task.resolved[k]))));
    });
    const plans = record.plans.map((plan, k) => ({ plan, k }));
    plans.sort((a, b) => (b.plan.sample ? b.plan.sample.reward : 0) - (a.plan.sample ? a.plan.sample.reward : 0));
    const parts = [
      el("h2", {}, "Step " + record.step + " · " + task.id),
      el("p", { class: "soft" }, task.source + " · " + record.arm + " · seed " + record.seed),
      ...task.messages.map((m) => el("p", { class: "message" }, el("b", {}, m.role + ": "), m.content, (m.tool_calls || []).map((c) => el("code", {}, " " + call(c))))),
      el("p", { class: "soft" }, "tools (" + task.tools.length + "): " + task.tools.join(", ")),
      el("div", {}, gold.length ? gold : el("p", { class: "soft" }, "No call is due: declining is right.")),
      prompt(record.prompt),
      ...plans.map(({ plan, k }, place) => planNode(plan, k, role, place === 0)),
    ];
    $("detail").replaceChildren(...parts.filter(Boolean));
  }
  const prompt = (text) => (text ? lazy(el("span", {}, "prompt"), false, () => [el("pre", {}, text)]) : null);

  // a folded part whose content is made when it is first opened
  function lazy(line, isOpen, content) {
    const node = el("details", {}, el("summary", {}, line));
    let made = false;
    const make = () => { if (node.open && !made) { made = true; node.append(el("div", { class: "inside" }, ...content().filter(Boolean))); } };
    node.addEventListener("toggle", make);
    node.open = isOpen;
    make();
    return node;
  }
  function planNode(plan, k, role, isOpen) {
    const sample = plan.sample;
    const line = sample ? numbers("plan " + (k + 1), sample) : el("b", {}, "the request itself");
    return lazy(line, isOpen || !sample, () => [
      ...(sample && role !== "executor" ? [...written(sample), ...planVerdicts(sample.breakdown)] : []),
      ...(role === "planner" && sample ? [] : plan.sub_tasks.map((s, n) => subTask(s, n, isOpen))),
      plan.sub_tasks.length || !sample ? null : el("p", { class: "soft" }, plan.plan ? "No sub-task: it declines." : "Nothing was executed."),
    ]);
  }
  function subTask(s, n, isOpen) {
    const what = s.tool === null ? "answer in words" : call({ name: s.tool, arguments: s.arguments });
    const stands = s.gold === null ? "no gold step: trains no executor"
      : !s.gold.length ? "no call due" : s.column === null ? "the whole request" : "gold " + (s.column + 1);
    return el("div", {},
      el("h3", {}, "sub-task " + (n + 1) + "  ", el("code", {}, what), " ", el("span", { class: "tag" }, stands)),
      el("p", { class: "message soft" }, s.task),
      prompt(s.prompt),
      s.samples.length ? s.samples.map((sample, g) => lazy(numbers("execution " + (g + 1), sample), isOpen && g === 0, () => [
        ...written(sample), verdicts(sample.breakdown),
        sample.result === null ? null : el("p", {}, "result ", el("code", {}, json(sample.result))),
      ])) : el("p", { class: "soft" }, "Not executed: its prompt is too long."));
  }
  function numbers(name, sample) {
    const style = sample.advantage > 0 ? "good" : sample.advantage < 0 ? "bad" : "soft";
    const parts = Object.entries(sample.parts || {}).filter(([key]) => key !== "total").map(([key, v]) => {
      const fill = el("i", {});
      fill.style.width = Math.max(0, Math.min(1, v)) * 100 + "%";
      return el("span", { class: "part" }, key, el("span", { class: "bar", title: String(v) }, fill), number(v, 2));
    });
    const tags = [[!sample.in_signal, "no signal"], [!sample.finished, "cut by the token limit"],
      [sample.failure, "outside the grammar"], [sample.void, "void"]].filter(([holds]) => holds);
    return el("span", { class: "line" }, el("b", {}, name), el("span", {}, sample.parts ? "reward " + number(sample.reward) : "not judged"),
      el("span", { class: style }, "advantage " + (sample.advantage > 0 ? "+" : "") + number(sample.advantage)),
      parts, el("span", { class: "soft" }, sample.tokens + " tokens"), tags.map(([, text]) => el("span", { class: "tag" }, text)));
  }
  function written(sample) {
    const failure = sample.failure;
    const letters = Array.from(sample.text), at = failure ? failure.position : letters.length;
    const text = !failure ? [sample.text || "(empty)"]
      : [letters.slice(0, at).join(""), el("mark", { title: failure.reason }, letters[at] || "⏎"), letters.slice(at + 1).join("")];
    return [el("pre", {}, ...text),
      failure ? el("p", { class: "bad" }, "✗ outside the grammar: " + failure.reason + " (character " + failure.position + ")") : null];
  }
  const SIGNS = { equal: ["✓ equal", "good"], differs: ["✗ differs", "bad"], missing: ["✗ missing", "bad"], extra: ["✗ not due", "bad"] };
  function planVerdicts(breakdown) {
    if (!breakdown) return [];
    const runs = breakdown.steps.map((steps, g) => {
      const met = steps.map((s) => "step " + (s.step + 1) + (s.sub_tasks.length ? " by sub-task " + s.sub_tasks.map((k) => k + 1).join(" and ") + " " + number(s.semantics, 2) : " not met"));
      const solved = breakdown.succeeded[g];
      return el("div", {}, el("span", { class: "soft" }, "run " + (g + 1) + ": "), met.join(", ") + "  ", el("span", { class: solved ? "good" : "bad" }, solved ? "✓ solved" : "✗ not solved"));
    });
    return [verdicts(breakdown.calls, true), ...runs,
      breakdown.extra ? el("p", { class: "bad" }, "✗ " + breakdown.extra + " more sub-tasks than gold calls") : null];
  }
  function verdicts(breakdown, numbered) {
    if (!breakdown || !breakdown.length) return null;
    const rows = breakdown.flatMap((c) => {
      const name = c.due === null ? (c.name === null ? ["answers in words", "soft"] : ["✗ " + c.name + ": not due", "bad"])
        : c.name === null ? ["✗ " + (numbered ? "gold " + (c.number + 1) + " " : "") + c.due + ": missing", "bad"]
        : c.valid === false ? ["✗ " + c.name + ": outside its schema", "bad"] : ["✓ " + c.name, "good"];
      const head = el("tr", {}, el("th", { colspan: 4, scope: "rowgroup", class: name[1] }, name[0] + (c.note ? " · " + c.note : "")));
      return [head, ...c.arguments.map((a) => el("tr", {},
        el("td", {}, a.name),
        el("td", {}, el("code", {}, a.verdict === "missing" || (a.made === null && a.at) ? "–" : json(a.made)), a.at ? el("span", { class: "soft" }, " in " + a.at) : null),
        el("td", {}, el("code", {}, a.verdict === "extra" ? "–" : json(a.due))),
        el("td", { class: SIGNS[a.verdict][1] }, SIGNS[a.verdict][0])))];
    });
    return el("table", { class: "verdicts" },
      el("thead", {}, el("tr", {}, ["argument", "made", "due", "verdict"].map((t) => el("th", { scope: "col" }, t)))), el("tbody", {}, rows));
  }

  // --- wiring -----------------------------------------------------------------------------------

  function clear() {
    $("filters").reset();
    refresh();
  }
  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { clear(); document.activeElement.blur(); return; }
    if (/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) return;
    const inDetail = $("detail").contains(document.activeElement);
    const step = { j: 1, k: -1, ...(inDetail ? {} : { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    if (step && shown.length) choose(Math.max(0, Math.min(shown.length - 1, chosen + step)));
    else if (event.key === "/") $("search").focus();
    else if (event.key === "Enter" && !inDetail && document.activeElement.tagName !== "BUTTON") $("detail").focus();
    else if (event.key === "o") toggleAll();
    else return;
    event.preventDefault();
  }
  function toggleAll() {
    const all = () => [...$("detail").querySelectorAll("details")];
    const closing = all().every((d) => d.open);
    // opening makes what is inside, which may hold more
    for (let before = -1; before !== all().length; ) {
      before = all().length;
      for (const d of all()) { d.open = !closing; d.dispatchEvent(new Event("toggle")); }
    }
  }
  const fill = (id, names) => $(id).append(...names.map((n) => el("option", { value: n }, n)));
  fill("source", [...new Set(index.map((r) => r.source))].sort());
  fill("tool", [...new Set(index.flatMap((r) => r.tools))].sort());
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", refresh);
  $("clear").addEventListener("click", clear);
  document.addEventListener("keydown", keys);
  new IntersectionObserver((seen) => { if (seen[0].isIntersecting && drawn < shown.length) draw(); }, { root: $("list") }).observe($("more"));
  const wanted = Number(location.hash.slice(1));
  refresh();
  if (location.hash && shown.includes(wanted)) choose(shown.indexOf(wanted));
})();
