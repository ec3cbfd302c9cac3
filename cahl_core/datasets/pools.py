"""General words, written for this project, that derived requests are about."""

from __future__ import annotations

POOLS: dict[str, tuple[str, ...]] = {
    "place": (
        "Lisbon", "Oslo", "Kyoto", "Nairobi", "Austin", "Toronto", "Prague", "Lima",
        "Hanoi", "Dublin", "Seville", "Denver", "Ghent", "Cape Town", "Montreal",
        "Buenos Aires", "Krakow", "Boston, MA", "Portland, OR", "Leeds", "Perth", "Bergen",
        "Salzburg", "Santa Fe", "Osaka", "Zurich, Switzerland",
    ),
    "country": (
        "Portugal", "Norway", "Japan", "Kenya", "Chile", "Vietnam", "Ireland", "Poland",
        "Canada",
    ),
    "person": (
        "Maria Lopes", "Sam Okafor", "Ingrid Dahl", "Tom Becker", "Aiko Mori", "Priya Nair",
        "Leo Grant", "Hannah Weiss", "Omar Haddad", "Julia Novak", "Ben Carter", "Chen Wei",
    ),
    "language": (
        "Spanish", "German", "Japanese", "Portuguese", "Korean", "Italian", "Dutch",
        "Hindi",
    ),
    "currency": (
        "USD", "EUR", "GBP", "JPY", "CAD", "CHF", "INR", "AUD", "SEK", "BRL",
    ),
    "unit": (
        "meters", "kilometers", "miles", "feet", "inches", "centimeters", "yards",
    ),
    "company": (
        "Acme Steel", "Northwind", "Blue Harbor Foods", "Siemens", "Nestle", "Volvo", "IBM",
        "Sony",
    ),
    "symbol": (
        "AAPL", "MSFT", "TSLA", "IBM", "NVDA", "SONY", "VWAGY",
    ),
    "genre": (
        "comedy", "drama", "jazz", "science fiction", "thriller", "folk", "documentary",
        "rock",
    ),
    "cuisine": (
        "Thai", "Ethiopian", "Greek", "Korean", "Peruvian", "Vietnamese", "French",
        "Turkish",
    ),
    "title": (
        "The Long Harbour", "Silent Rivers", "A Map of Stars", "Blue Lantern",
        "Winter Orchard", "The Last Cartographer", "Paper Moons", "Night Train North",
        "Salt and Iron",
    ),
    "text": (
        "The meeting is moved to Friday", "I love this little cafe",
        "Please send the report today", "Your order has been shipped",
        "The train was late again", "See you at the station",
        "This phone is a waste of money", "Thank you for your help",
    ),
    "query": (
        "wireless headphones", "garden chairs", "electric bikes", "solar energy",
        "ocean pollution", "machine learning", "vegan desserts", "running shoes",
        "jazz piano", "space telescopes", "home office desk", "budget travel",
    ),
    "food": (
        "chicken", "rice", "tomatoes", "lentils", "spinach", "salmon", "tofu", "mushrooms",
        "eggs",
    ),
    "subject": (
        "budget review", "dentist visit", "team lunch", "piano lesson", "sprint planning",
    ),
    "device": (
        "kitchen speaker", "living room TV", "bedroom lamp", "office printer",
    ),
    "venue": (
        "Harbour View", "The Copper Kettle", "Green Leaf", "Villa Aurora", "Grand Central",
        "Blue Door", "Riverside", "Casa Verde", "Old Mill",
    ),
    "shape": (
        "circle", "rectangle", "triangle", "square", "trapezoid",
    ),
    "color": (
        "red", "navy blue", "forest green", "orange", "white", "#33aaff",
    ),
    "sport": (
        "tennis", "basketball", "rowing", "handball", "cricket", "ice hockey",
    ),
}  # fmt: skip
