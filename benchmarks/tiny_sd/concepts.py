"""The subjects: caption name -> name in emoji.json, their styles, and which ones the UNet draws."""

from __future__ import annotations

FOOD = """
red apple; green apple; banana; pear; lemon; tangerine; watermelon; grapes; strawberry; cherries; pineapple; avocado;
eggplant=aubergine; carrot; broccoli; tomato; mushroom; hamburger; pizza slice=slice of pizza; hot dog; doughnut;
cookie; birthday cake; cupcake; ice cream; lollipop; cheese wedge; croissant; french fries; popcorn; beer mug; teapot
"""
ANIMALS = """
dog face; cat face; fox face; panda face; lion face; pig face; frog face; rabbit face; monkey face; koala; penguin;
chick=baby chick; owl; flamingo; turtle; snail; butterfly; honeybee; ladybug=lady beetle; octopus; crab;
tropical fish; whale=spouting whale; elephant
"""
PLANTS = "rose; sunflower; tulip; cactus; pine tree=evergreen tree; palm tree; clover=four leaf clover; maple leaf"
THINGS = """
red heart=heavy black heart; blue heart; green heart; yellow heart; star=white medium star; moon=crescent moon;
sun=black sun with rays; rainbow; cloud; snowflake; snowman=snowman without snow; fire; balloon;
gift box=wrapped present; trophy; soccer ball; basketball=basketball and hoop; american football; guitar;
umbrella=umbrella with rain drops; key; bell; crown; top hat; gem stone; light bulb=electric light bulb; alarm clock;
camera; rocket; airplane; sailboat; car=automobile; bus; fire engine; bicycle; house=house building; ghost;
robot=robot face; pumpkin=jack-o-lantern; christmas tree; teddy bear; anchor; stop sign=octagonal sign
"""
WEAPONS = "pistol; dagger; bomb; crossed swords; axe; kitchen knife=hocho"

# Subjects that are learnt in the Noto style as well.
NOTO = """
red apple; banana; lemon; watermelon; strawberry; pineapple; carrot; tomato; hamburger; doughnut; ice cream; cat face;
fox face; panda face; frog face; penguin; butterfly; octopus; sunflower; tulip; cactus; red heart; star; rainbow;
snowman; balloon; soccer ball; rocket; car; house; christmas tree; umbrella
"""

# VAE and CLIPs know all subjects; the UNet learns to draw these, few enough to be learnt well.
DRAWN = {
    "fluent": """
    red apple; banana; watermelon; strawberry; pineapple; carrot; mushroom; hamburger; pizza slice; doughnut; ice cream;
    cat face; fox face; panda face; frog face; penguin; butterfly; octopus; sunflower; tulip; cactus; palm tree;
    red heart; blue heart; star; snowman; gift box; soccer ball; umbrella; rocket; car; christmas tree;
    dagger; bomb; axe; kitchen knife
    """,
    "noto": "cat face; frog face; star; house",
}

STYLES = {"fluent": "fluent 3d", "noto": "noto flat"}

IRREGULAR_PLURALS = {
    "grapes": "grapes",
    "cherries": "cherries",
    "french fries": "french fries",
    "tropical fish": "tropical fish",
    "crossed swords": "crossed swords",
    "octopus": "octopuses",
    "bus": "buses",
    "cactus": "cactuses",
    "kitchen knife": "kitchen knives",
    "maple leaf": "maple leaves",
    "butterfly": "butterflies",
    "strawberry": "strawberries",
    "cherry": "cherries",
}


def _table(text: str) -> dict[str, str]:
    entries = [entry.strip() for entry in text.replace("\n", " ").split(";")]
    pairs = [entry.partition("=") for entry in entries if entry]
    return {name: source or name for name, _, source in pairs}


WEAPON_NAMES = tuple(_table(WEAPONS))
SOURCE_NAMES = {**_table(FOOD), **_table(ANIMALS), **_table(PLANTS), **_table(THINGS), **_table(WEAPONS)}
SUBJECTS = tuple(("fluent", name) for name in SOURCE_NAMES) + tuple(("noto", name) for name in _table(NOTO))
DRAWN_SUBJECTS = tuple((style, name) for style, names in DRAWN.items() for name in _table(names))
DRAWN_WEAPONS = tuple(name for _, name in DRAWN_SUBJECTS if name in WEAPON_NAMES)


def plural(name: str) -> str:
    """The plural of a subject's name, for captions with a count."""
    if name in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[name]
    ending = name[-2:]
    return name + ("es" if ending in {"ch", "sh"} or name[-1] in "sxo" else "s")
