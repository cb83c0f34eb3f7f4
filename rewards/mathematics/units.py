"""Units, measure words and scale words behind a number: which are the same, which may be dropped."""

import re

_ALIASES = {
    "mm": "millimeter millimeters millimetre millimetres 毫米",
    "cm": "centimeter centimeters centimetre centimetres 厘米",
    "dm": "decimeter decimeters decimetre 分米",
    "m": "meter meters metre metres 米",
    "km": "kilometer kilometers kilometre kilometres 千米 公里",
    "in": "inch inches 英寸",
    "ft": "foot feet 英尺",
    "yd": "yard yards",
    "mi": "mile miles 英里",
    "mg": "milligram milligrams 毫克",
    "g": "gram grams 克",
    "kg": "kilogram kilograms 千克 公斤",
    "t": "ton tons tonne tonnes 吨",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "ml": "milliliter milliliters millilitre 毫升",
    "l": "L liter liters litre litres 升",
    "gal": "gallon gallons",
    "s": "sec secs second seconds 秒",
    "min": "mins minute minutes 分钟",
    "h": "hr hrs hour hours 小时",
    "day": "days 天 日",
    "week": "weeks 周",
    "month": "months 个月 月",
    "year": "years yr yrs 年",
    "degree": "degrees deg 度",
    "rad": "radian radians 弧度",
    "n": "N newton newtons 牛 牛顿",
    "j": "J joule joules 焦耳 焦",
    "w": "W watt watts 瓦",
    "kw": "kW kilowatt kilowatts 千瓦",
    "v": "V volt volts 伏",
    "a": "A amp amps ampere amperes 安",
    "ohm": "ohms Ω 欧",
    "pa": "Pa pascal pascals 帕",
    "hz": "Hz hertz 赫兹",
    "mol": "moles mole 摩尔",
    "k": "K kelvin",
    "dollar": "dollars USD usd 美元",
    "cent": "cents",
    "yuan": "元 RMB CNY 人民币",
    "mph": "",
    "ha": "hectare hectares 公顷",
    "acre": "acres 英亩",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases.split())}
# Alone behind a number these letters are variables ("3t") unless a space or \text{} sets them off.
_SET_OFF_ONLY = {name for name in _CANONICAL if len(name) == 1 and name.isascii()}
_NEVER_BARE = {"t", "n", "j", "w", "v", "a", "k", "h"}  # variables even behind a space, when not in \text{}
_NOT_UNITS = frozenset(
    word
    for line in (
        "and or to not than less more plus minus times over squared cubed if for when where mod divided through",
        "between the is are of from with but pi sqrt sin cos tan cot sec csc log exp max min lim undefined infinity",
        "only each solution solutions hundred thousand million billion trillion dozen none half third quarter percent",
    )
    for word in line.split()
)
_MEASURE_WORDS = (
    "个名人只支本张条件块头棵辆次种倍岁页朵套双对袋箱盒户家组位层台把枝道题圈根粒片杯瓶篇幅座间份行列排步分角号点"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}
_SCALE = re.compile(
    r"(?<=[0-9])\s*(?:\\text\s*\{\s*)?(hundred|thousand|million|billion|trillion|万|亿)(?![a-zA-Z])\s*\}?"
)
_POWER = r"(?:\s*\^\s*\{?\s*(-?[1-9])\s*\}?)?"
_TEXT_UNIT = re.compile(rf"(?<=[0-9a-zA-Z}})!%\]])\s*\\text\s*\{{([^{{}}$]*)\}}{_POWER}\s*$")
_BARE_UNIT = re.compile(rf"(?<=[0-9}})])(\s*)([a-zA-Z]+(?:\s*/\s*[a-zA-Z]+)?){_POWER}\s*$")
_PROSE_UNIT = re.compile(r"(?<=[0-9}])\s+([a-zA-Z]{3,}(?:[ -][a-zA-Z]{3,}){0,2})" + _POWER + r"\s*$")
_CHINESE_UNITS = sorted((alias for alias in _CANONICAL if not alias.isascii()), key=len, reverse=True)
_CHINESE_UNIT = re.compile(
    rf"(?<=[0-9}}])\s*((?:平方|立方)?(?:{'|'.join(_CHINESE_UNITS)})|[{_MEASURE_WORDS}](?:(?![或和与且])[\u4e00-\u9fff]){{0,4}})(?:/([^\W\d]{{1,3}}))?\s*$"
)
_MODULUS = re.compile(r"\s*\(?\s*\\p?mod\s*\{?\s*([0-9]+)\s*\}?\s*\)?\s*$")
_SQUARE = re.compile(r"(square|sq\.?|cubic|cu\.?)\s+(\S+)$")


def split_unit(text: str) -> tuple[str, str]:
    """Split into (formula, unit behind it); the unit is "" without one. Scale words become powers of ten."""
    modulus = _MODULUS.search(text)
    if modulus and "=" not in text and "\\equiv" not in text:
        return text[: modulus.start()].strip(), f"mod {modulus[1]}"
    text = _SCALE.sub(lambda scale: f" \\cdot 10^{{{_SCALES[scale[1]]}}}", text)
    for split in (_split_text_unit, _split_bare_unit, _split_prose_unit, _split_chinese_unit):
        found = split(text)
        if found is not None:
            formula, unit = found
            return formula.strip(), unit
    return text, ""


def same_unit(one: str, other: str) -> bool:
    """False only for two known units or moduli that differ: 5 cm is not 5 m, but 5 apples may be 5 fruits."""
    if one.startswith("mod ") and other.startswith("mod "):
        return one == other
    known = set(_ALIASES)
    dimensions = [re.sub(r"\^-?\d", "", unit).split("/") for unit in (one, other)]
    if not one or not other or not all(part in known for unit in dimensions for part in unit):
        return True
    return one == other


def _split_text_unit(text: str) -> tuple[str, str] | None:
    match = _TEXT_UNIT.search(text)
    if match is None:
        return None
    words = match[1].strip(" .,()").replace("\\", "")
    if (
        not words
        or words in ("i", "e", "x", "y", "z")
        or words.split()[0] in _NOT_UNITS
        or any(character.isdigit() for character in words.split("^")[0])
    ):
        return None
    return text[: match.start()], _canonical(words, match[2])


def _split_bare_unit(text: str) -> tuple[str, str] | None:
    match = _BARE_UNIT.search(text)
    if match is None or "\\" in text[match.start() : match.end()]:
        return None
    unit = re.sub(r"\s", "", match[2])
    parts = unit.split("/")
    if not all(part in _CANONICAL for part in parts):
        return None
    alone = len(parts) == 1
    if alone and unit in _SET_OFF_ONLY and (not match[1] or unit in _NEVER_BARE):
        return None
    return text[: match.start()], _canonical(unit, match[3])


def _split_prose_unit(text: str) -> tuple[str, str] | None:
    match = _PROSE_UNIT.search(text)
    if match is None or any(word in _NOT_UNITS for word in re.split(r"[ -]", match[1].lower())):
        return None
    return text[: match.start()], _canonical(match[1], match[2])


def _split_chinese_unit(text: str) -> tuple[str, str] | None:
    match = _CHINESE_UNIT.search(text)
    if match is None:
        return None
    unit, power = match[1], None
    for word, value in (("平方", "2"), ("立方", "3")):
        if unit.startswith(word):
            unit, power = unit.removeprefix(word), value
    per = f"/{match[2]}" if match[2] else ""
    return text[: match.start()], _canonical(unit + per, power)


def _canonical(words: str, power: str | None) -> str:
    words = " ".join(words.split())
    square = _SQUARE.search(words.lower())
    if square:
        words, power = square[2], "2" if square[1].startswith("s") else "3"
    base, caret, written = words.partition("^")
    if caret:
        power = written.strip("{} ")
    parts = [part.strip() for part in base.strip().split("/")]
    name = "/".join(_CANONICAL.get(part, _CANONICAL.get(part.lower(), part.lower())) for part in parts)
    return f"{name}^{power}" if power and power != "1" else name
