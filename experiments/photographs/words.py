"""Words for the categories of COCO and TACO: what a region is called, and what else counts as its name.

Synonyms were written before any model was measured. They are other words for the same kind of thing, and narrower
kinds ("woman" of a person, "mug" of a cup); a wider word ("animal" of a dog, "bottle" of a plastic lid) is not one.
"""

from __future__ import annotations

import re
from functools import cache


# TACO's jargon in plain words; of its other names only the capitals go.
TACO_NAMES = {
    "Aluminium foil": "aluminum foil",
    "Aluminium blister pack": "blister pack",
    "Carded blister pack": "blister pack",
    "Clear plastic bottle": "plastic bottle",
    "Other plastic bottle": "plastic bottle",
    "Plastic bottle cap": "bottle cap",
    "Metal bottle cap": "bottle cap",
    "Aerosol": "spray can",
    "Toilet tube": "toilet paper tube",
    "Other carton": "carton",
    "Corrugated carton": "cardboard",
    "Disposable plastic cup": "plastic cup",
    "Other plastic cup": "plastic cup",
    "Other plastic": "piece of plastic",
    "Normal paper": "piece of paper",
    "Plastified paper bag": "paper bag",
    "Six pack rings": "six-pack rings",
    "Other plastic wrapper": "plastic wrapper",
    "Single-use carrier bag": "plastic bag",
    "Polypropylene bag": "plastic bag",
    "Spread tub": "plastic tub",
    "Disposable food container": "food container",
    "Foam food container": "food container",
    "Other plastic container": "plastic container",
    "Plastic glooves": "plastic gloves",
    "Plastic utensils": "plastic cutlery",
    "Rope & strings": "rope",
    "Squeezable tube": "squeeze tube",
    "Styrofoam piece": "piece of styrofoam",
    "Unlabeled litter": "piece of litter",
}
# One has some of these, not one of them.
_UNCOUNTED = {
    "broccoli",
    "skis",
    "scissors",
    "aluminum foil",
    "broken glass",
    "cardboard",
    "food waste",
    "magazine paper",
    "tissues",
    "wrapping paper",
    "plastic film",
    "six-pack rings",
    "tupperware",
    "plastic gloves",
    "plastic cutlery",
    "rope",
    "scrap metal",
}

# By the name of the category; the name itself always counts. Plurals are found besides.
SYNONYMS = {
    "person": "people man men woman women boy girl child children kid baby toddler lady guy gentleman player rider "
    "skier skateboarder surfer snowboarder cyclist pedestrian batter pitcher catcher umpire chef crowd human adult",
    "bicycle": "bike cycle",
    "car": "automobile sedan taxi cab suv minivan hatchback convertible jeep",
    "motorcycle": "motorbike scooter moped",
    "airplane": "aeroplane plane jet aircraft airliner jetliner",
    "bus": "coach minibus",
    "train": "locomotive tram railcar",
    "truck": "lorry pickup van trailer",
    "boat": "ship canoe kayak sailboat yacht ferry rowboat dinghy raft motorboat",
    "traffic light": "traffic signal|stoplight|stop light",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "parking machine",
    "bench": "",
    "bird": "duck goose geese gull seagull pigeon sparrow swan chicken rooster hen parrot owl eagle crow heron "
    "penguin peacock turkey",
    "cat": "kitten kitty",
    "dog": "puppy hound",
    "horse": "pony foal mare stallion",
    "sheep": "lamb ewe",
    "cow": "cattle bull calf calves ox oxen",
    "elephant": "",
    "bear": "",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack knapsack",
    "umbrella": "parasol",
    "handbag": "purse|hand bag|shoulder bag|tote bag|bag",
    "tie": "necktie|bow tie",
    "suitcase": "luggage briefcase trunk",
    "frisbee": "disc",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball baseball football basketball volleyball",
    "kite": "",
    "baseball bat": "bat",
    "baseball glove": "baseball mitt|glove|mitt",
    "skateboard": "skate board",
    "surfboard": "surf board",
    "tennis racket": "racket racquet",
    "bottle": "flask",
    "wine glass": "wineglass goblet glass",
    "cup": "mug glass tumbler",
    "fork": "",
    "knife": "knives",
    "spoon": "ladle",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger hamburger sub toast",
    "orange": "clementine mandarin tangerine",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog frankfurter",
    "pizza": "",
    "donut": "doughnut",
    "cake": "cupcake cheesecake pastry",
    "chair": "armchair stool seat",
    "couch": "sofa settee loveseat",
    "potted plant": "plant houseplant flowerpot",
    "bed": "mattress crib bunk",
    "dining table": "table desk",
    "toilet": "urinal lavatory",
    "tv": "television monitor screen",
    "laptop": "notebook computer",
    "mouse": "",
    "remote": "remote control|controller",
    "keyboard": "",
    "cell phone": "cellphone smartphone phone telephone",
    "microwave": "",
    "oven": "stove cooker range",
    "toaster": "",
    "sink": "basin washbasin",
    "refrigerator": "fridge freezer",
    "book": "magazine notebook novel",
    "clock": "",
    "vase": "urn",
    "scissors": "shears",
    "teddy bear": "teddy|stuffed animal|stuffed bear",
    "hair drier": "hair dryer|hairdryer|blow dryer",
    "toothbrush": "tooth brush",
    # Litter.
    "aluminum foil": "aluminium foil|foil|tinfoil",
    "blister pack": "blister|pill pack",
    "plastic bottle": "water bottle|bottle",
    "glass bottle": "bottle|beer bottle|wine bottle",
    "bottle cap": "cap",
    "broken glass": "glass|shards|glass shard",
    "food can": "can|tin|tin can",
    "drink can": "can|soda can|beer can|tin",
    "spray can": "aerosol|can",
    "toilet paper tube": "toilet roll|paper tube|cardboard tube",
    "carton": "cardboard box|box|packet",
    "cardboard": "cardboard box|box|carton",
    "egg carton": "egg box|carton",
    "drink carton": "milk carton|juice carton|juice box|carton",
    "meal carton": "food carton|food box|carton",
    "paper cup": "cup",
    "plastic cup": "cup",
    "foam cup": "styrofoam cup|cup",
    "glass cup": "glass|cup|drinking glass",
    "food waste": "food scraps|food|peel",
    "glass jar": "jar",
    "plastic lid": "lid",
    "metal lid": "lid",
    "piece of plastic": "plastic",
    "magazine paper": "magazine|paper|newspaper",
    "tissues": "tissue|napkin|paper towel",
    "wrapping paper": "wrapper|paper",
    "piece of paper": "paper|sheet|receipt",
    "paper bag": "bag",
    "plastic film": "film|plastic wrap|plastic sheet|cling film|wrapper",
    "six-pack rings": "six pack rings|rings",
    "garbage bag": "trash bag|bin bag|rubbish bag|bag",
    "plastic wrapper": "wrapper|candy wrapper",
    "plastic bag": "carrier bag|shopping bag|bag",
    "crisp packet": "crisp bag|chip bag|bag of chips|chips bag|packet",
    "plastic tub": "tub|container",
    "tupperware": "plastic container|container|food container",
    "food container": "container|takeout box|food box|tray",
    "plastic container": "container|tub",
    "plastic gloves": "glove",
    "plastic cutlery": "plastic fork|plastic knife|plastic spoon|cutlery|utensil",
    "pop tab": "pull tab|can tab|tab|ring pull",
    "rope": "string|cord",
    "scrap metal": "metal",
    "shoe": "sneaker|sandal|boot|flip flop",
    "squeeze tube": "tube",
    "plastic straw": "straw|drinking straw",
    "paper straw": "straw|drinking straw",
    "piece of styrofoam": "styrofoam|foam|polystyrene",
    "piece of litter": "litter|trash|garbage|rubbish",
    "cigarette": "cigarette butt|cigarette stub|butt",
}


def plain_name(name: str) -> str:
    """Returns a category of COCO or TACO in plain words: "Other carton" becomes "carton"."""
    return TACO_NAMES.get(name, name.lower())


def caption_of(name: str) -> str:
    """Returns a plain name as a caption, in the form of those of `scenes`: "a dog", "an umbrella", "broccoli"."""
    return name if name in _UNCOUNTED else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def names_of(category: str) -> list[str]:
    """Returns the words that count as a category's name, itself first. A list without bars is one of single words."""
    listed = SYNONYMS.get(category, "")
    return [category, *filter(None, listed.split("|") if "|" in listed else listed.split())]


@cache
def _pattern(category: str) -> re.Pattern[str]:
    words = []
    for name in names_of(category):
        plural = f"{name[:-1]}ies" if name.endswith("y") and name[-2] not in "aeiou" else rf"{name}(?:s|es)?"
        words.append(f"{name}|{plural}" if name.endswith("y") else plural)
    return re.compile(rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])")


# "a hot dog" is not a dog.
_OTHER_THINGS = {
    "dog": re.compile(r"\bhot dogs?\b"),
    "bear": re.compile(r"\b(?:teddy|stuffed) bears?\b"),
    "mouse": re.compile(r"\bmouse ?pads?\b"),
    "cup": re.compile(r"\bwine glass(?:es)?\b"),
    "bottle": re.compile(r"\bbottle caps?\b"),
    "plastic bottle": re.compile(r"\bbottle caps?\b"),
    "glass bottle": re.compile(r"\bbottle caps?\b"),
    "orange": re.compile(r"\borange(?= \w)"),
    "toilet": re.compile(r"\btoilet (?:paper|roll|seat)s?\b"),
    "keyboard": re.compile(r"\bpiano keyboards?\b"),
    "bed": re.compile(r"\bflower ?beds?\b"),
    "sports ball": re.compile(r"\bbase ?ball (?:bat|glove|mitt)s?\b"),
    "baseball bat": re.compile(r"\bbats?\b(?= flying)"),
    "clock": re.compile(r"\bo'clock\b"),
    "train": re.compile(r"\btrain (?:station|track)s?\b"),
    "car": re.compile(r"\b(?:railway|train) cars?\b"),
    "truck": re.compile(r"\btrailer parks?\b"),
}


def says(caption: str, category: str) -> bool:
    """Whether a caption has the category's name or a synonym as words of its own, one or several of it."""
    text = caption.lower()
    if category in _OTHER_THINGS:
        text = _OTHER_THINGS[category].sub(" ", text)
    return _pattern(category).search(text) is not None
