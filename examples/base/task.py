"""The base model learns to read digits, short words, pictures and bar charts. Every answer is exact.

A family has one caption, which says all that its image shows, and questions whose answers the caption holds. A text of
a caption with a question is what the language model learns to answer from before it sees an image.
"""

from enum import Enum


class Family(Enum):
    """A kind of image; the value is the first word of its caption."""

    digits = "Digits"
    words = "Word"
    pictures = "Picture"
    charts = "Bars"


QUESTIONS = {
    Family.digits: "Which digits are these?",
    Family.words: "Which word is this?",
    Family.pictures: "What is this?",
}
"""The one question of a family; a chart is asked several."""

HIGHEST = "Which bar is the highest?"
DESCRIBE = "Describe the image."


def question_of_height(colour: str) -> str:
    return f"How high is the {colour} bar?"


def question_of_frame(number: int) -> str:
    return f"What is on frame {number}?"


def caption_of(family: Family, shown: str) -> str:
    """For example `Word "STAR"`. The quotation marks keep the tokens of what is shown those of an answer."""
    return f'{family.value} "{shown}"'


LEVELS = range(1, 6)
"""Heights of a bar in steps of the axis."""

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 70, 210),
    "yellow": (225, 190, 30),
    "black": (25, 25, 25),
}
"""Colours of bars in red, green and blue from 0 to 255."""

NUM_TEST_WORDS = 40
_LISTED = (
    "ACE ACT ADD AGE AIM AIR ALL AND ANT APE ARC ARM ART ASH ASK BAD BAG BAR BAT BED BEE BET BIG BIN BIT BOW BOX BOY "
    "BUD BUG BUS BUY CAB CAN CAP CAR CAT COW CRY CUP CUT DAD DAY DEN DIG DIM DIP DOG DOT DRY EAR EAT EGG END EYE FAN "
    "FAR FAT FEW FIG FIN FIT FIX FLY FOG FOX FUN FUR GAP GAS GEM GET GUM GUN GUY HAM HAT HAY HEN HIP HIT HOP HOT HUT "
    "ICE INK INN IVY JAM JAR JAW JET JOB JOY JUG KEY KID KIT LAB LAP LAW LEG LID LIP LOG LOW MAD MAN MAP MAT MIX MOP "
    "MUD MUG NAP NET NEW NUT OAK OAR OIL OLD OWL OWN PAD PAN PAW PEA PEN PET PIE PIG PIN PIT POT PUB RAG RAT RAW RED "
    "RIB RIM ROD ROW RUG RUN SAD SAW SEA SET SKY SON SUN TAP TAX TEA TEN TIE TIN TIP TOE TOP TOY TUB USE VAN VET WAR "
    "WAX WEB WET WIG WIN WOK YAK YES ZIP ZOO"
)
WORDS = _LISTED.split()
"""Common English words of three letters."""
