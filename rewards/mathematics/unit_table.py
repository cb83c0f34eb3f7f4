"""The units that are known: dimension and size of each, under all of its names."""

from fractions import Fraction

Definition = tuple[dict[str, int], Fraction]
"""Powers of base dimensions, and the size in their base unit."""

_TEN = Fraction(10)
_PREFIXES = {
    "n": ("nano", -9), "µ": ("micro", -6), "u": ("", -6), "m": ("milli", -3), "c": ("centi", -2), "d": ("deci", -1),
    "k": ("kilo", 3), "M": ("mega", 6), "G": ("giga", 9), "T": ("tera", 12),
}  # fmt: skip
# Symbol: dimension, exponent, size as a power of ten, names, prefixes that are in use.
_METRIC = {
    "m": ("length", 1, 0, "meter metre", "nµumcdk"),
    "g": ("mass", 1, -3, "gram gramme", "nµumck"),
    "s": ("time", 1, 0, "second", "nµum"),
    "L": ("length", 3, -3, "liter litre", "µumcdk"),
    "l": ("length", 3, -3, "", "mcd"),
    "Hz": ("frequency", 1, 0, "hertz", "kMGT"),
    "N": ("force", 1, 0, "newton", "mkM"),
    "J": ("energy", 1, 0, "joule", "mkMG"),
    "W": ("power", 1, 0, "watt", "µumkMG"),
    "V": ("voltage", 1, 0, "volt", "µumkM"),
    "A": ("current", 1, 0, "ampere amp", "nµumk"),
    "Ω": ("resistance", 1, 0, "ohm", "mkM"),
    "Pa": ("pressure", 1, 0, "pascal", "kMG"),
    "mol": ("amount", 1, 0, "mole", "µumk"),
    "F": ("F", 1, 0, "farad", "nµum"),
    "C": ("C", 1, 0, "coulomb", "nµum"),
    "H": ("inductance", 1, 0, "henry", "µum"),
    "T": ("field", 1, 0, "tesla", "µum"),
    "eV": ("electronvolt", 1, 0, "electronvolt", "mkMG"),
    "cal": ("calorie", 1, 0, "calorie", "k"),
    "B": ("byte", 1, 0, "byte", "kMGT"),
    "bit": ("bit", 1, 0, "", "kMG"),
    "K": ("kelvin", 1, 0, "kelvin", "m"),
    "bar": ("bar", 1, 0, "", "m"),
}  # fmt: skip
# Names: dimension, exponent, size. Chinese names stand beside the others.
_OTHERS = [
    ("in inch inches 英寸", "length", 1, "0.0254"),
    ("ft foot feet 英尺", "length", 1, "0.3048"),
    ("yd yard yards 码", "length", 1, "0.9144"),
    ("mi mile miles 英里", "length", 1, "1609.344"),
    ("nmi 海里", "length", 1, "1852"),
    ("里", "length", 1, "500"),
    ("丈", "length", 1, "10/3"),
    ("尺", "length", 1, "1/3"),
    ("寸", "length", 1, "1/30"),
    ("light-year light-years lightyear lightyears 光年", "light-year", 1, "1"),
    ("ha hectare hectares 公顷", "length", 2, "10000"),
    ("亩", "length", 2, "2000/3"),
    ("acre acres 英亩", "acre", 1, "1"),
    ("gal gallon gallons 加仑", "gallon", 1, "1"),
    ("qt quart quarts", "gallon", 1, "1/4"),
    ("pt pint pints", "gallon", 1, "1/8"),
    ("cup cups", "gallon", 1, "1/16"),
    ("cc", "length", 3, "1/1000000"),
    ("t ton tons tonne tonnes 吨", "mass", 1, "1000"),
    ("斤", "mass", 1, "1/2"),
    ("两", "mass", 1, "1/20"),
    ("lb lbs 磅", "pound-mass", 1, "1"),
    ("pound pounds", "pound", 1, "1"),
    ("oz ounce ounces 盎司", "pound-mass", 1, "1/16"),
    ("sec secs 秒 秒钟", "time", 1, "1"),
    ("min mins minute minutes 分钟", "time", 1, "60"),
    ("h hr hrs hour hours 小时 个小时 时", "time", 1, "3600"),
    ("day days 天 日", "time", 1, "86400"),
    ("week weeks 周 星期 个星期", "time", 1, "604800"),
    ("month months mo 个月 月", "month", 1, "1"),
    ("year years yr yrs 年 岁", "month", 1, "12"),
    ("decade decades", "month", 1, "120"),
    ("century centuries 世纪", "month", 1, "1200"),
    ("degree degrees deg ° 度", "degree", 1, "1"),
    ("°C celsius 摄氏度", "celsius", 1, "1"),
    ("°F fahrenheit 华氏度", "fahrenheit", 1, "1"),
    ("rad rads radian radians 弧度", "radian", 1, "1"),
    ("knot knots kn kt kts 节", "knot", 1, "1"),
    ("rpm", "rpm", 1, "1"),
    ("dB decibel decibels 分贝", "decibel", 1, "1"),
    ("hp horsepower 马力", "horsepower", 1, "1"),
    ("atm atmospheres", "atm", 1, "1"),
    ("mmHg", "mmHg", 1, "1"),
    ("psi", "psi", 1, "1"),
    ("ppm", "ppm", 1, "1"),
    ("hPa", "pressure", 1, "100"),
    ("Wh", "energy", 1, "3600"),
    ("kWh", "energy", 1, "3600000"),
    ("dollar dollars USD usd 美元", "dollar", 1, "1"),
    ("cent cents ¢", "dollar", 1, "1/100"),
    ("euro euros EUR 欧元", "euro", 1, "1"),
    ("GBP 英镑", "pound-sterling", 1, "1"),
    ("yuan 元 块 块钱 元钱 RMB CNY 人民币", "yuan", 1, "1"),
    ("yen JPY 日元", "yen", 1, "1"),
    ("角 毛", "yuan", 1, "1/10"),
    ("rupee rupees INR", "rupee", 1, "1"),
    ("won KRW 韩元", "won", 1, "1"),
    ("HKD 港元 港币", "hong-kong-dollar", 1, "1"),
]
_CHINESE_METRIC = (
    "毫米=mm 厘米=cm 公分=cm 分米=dm 米=m 千米=km 公里=km 微米=µm 纳米=nm 毫克=mg 克=g 千克=kg 公斤=kg 毫升=mL "
    "升=L 赫兹=Hz 赫=Hz 牛顿=N 牛=N 焦耳=J 焦=J 千焦=kJ 瓦=W 瓦特=W 千瓦=kW 伏=V 伏特=V 千伏=kV 安=A 安培=A "
    "毫安=mA 欧=Ω 欧姆=Ω 千欧=kΩ 帕=Pa 帕斯卡=Pa 千帕=kPa 摩尔=mol 毫秒=ms 库仑=C 法拉=F 特斯拉=T 千瓦时=kWh "
    "千卡=kcal 卡=cal 兆=MB 兆赫=MHz "
)
ALIKE = {
    "degree": {"celsius", "fahrenheit"},
    "C": {"celsius"},
    "F": {"fahrenheit"},
    "pound": {"pound-mass", "pound-sterling"},
    "¥": {"yuan", "yen"},
}
"""Names that leave a choice, and what each may mean."""


def _known() -> dict[str, Definition]:
    table: dict[str, Definition] = {}
    for symbol, (dimension, exponent, power, names, prefixes) in _METRIC.items():
        size = _TEN**power
        for name in (symbol, *names.split(), *(f"{name}s" for name in names.split())):
            table[name] = ({dimension: exponent}, size)
        for prefix in prefixes:
            word, shift = _PREFIXES[prefix]
            spelled = [f"{word}{name}{plural}" for name in names.split() for plural in ("", "s")] if word else []
            for name in (prefix + symbol, *spelled):
                table[name] = ({dimension: exponent}, size * _TEN**shift)
    for names, dimension, exponent, size in _OTHERS:
        table.update(dict.fromkeys(names.split(), ({dimension: exponent}, Fraction(size))))
    for pair in _CHINESE_METRIC.split():
        name, _, symbol = pair.partition("=")
        table[name] = table[symbol]
    metre_per_second = {"length": 1, "time": -1}
    for names, size in (
        ("mph", "0.44704"),
        ("kmh kph kmph 千米每小时 公里每小时 千米每时", "5/18"),
        ("米每秒", "1"),
    ):
        table.update(dict.fromkeys(names.split(), (metre_per_second, Fraction(size))))
    return table


KNOWN = _known()
CHINESE = sorted(
    (name for name in KNOWN if not name.isascii() and "\u4e00" <= name[0] <= "\u9fff"), key=len, reverse=True
)
