"""Pairs of answer and reference that are not equal, by kind; the answer stands first."""

import pytest

from rewards.mathematics.answer import compare_plainly, verify_symbolic
from rewards.result import Unscorable

UNEQUAL = {
    "dates, times, ranges, ratios": r"""
        2021-05-03 ## 2021-03-05
        2013 ## 2021-03-05
        1/2/2020 ## 2/4/2020
        0-5 ## 10-15
        2020-2021 ## 2021-2022
        10:30 ## 5:15
        1:2:3 ## 1:1:6
        1:2:3 ## 1:6
        3:2 ## 2:3
        12:30 ## 6:15
        2:4:6 ## 1:2:4
        3-5 ## 5-3
        3-5 ## -2
        3–5 ## 4–6
        6:20 a.m. ## 6:20\text{ p.m.}
        6 ## 6:20\text{ p.m.}
        3:1 ## 1:3
        3:10 ## 6:20
        5-8 ## 5:8
        2:3:4 ## 4:3:2
        2:3:4 ## 2:3
        10\text{ am} ## 10
        3月5日 ## 5月3日
    """,
    "denials and bounds": r"""
        7 wrong ## 7
        \not=7 ## 7
        \ne 7 ## 7
        7\text{ below zero} ## 7
        7\text{ at least} ## 7
        7\text{ incorrect} ## 7
        7 minus ## 7
        7 negative ## 7
        7 less ## 7
        5 knots ## 5 mph
        \lnot 7 ## 7
        7 nope ## 7
        \pm 7 ## 7
        > 7 ## 7
        \approx 7.5 ## 7
        < 7 ## 7
        7? ## 7
        7 not ## 7
        5 below ## 5
        5 less than x ## 5
        5 more ## 5
        10 more apples ## 10
        \pm2 ## 2
        \lnot p ## p
        \neg p ## \neg q
        7 \text{ is wrong} ## 7
        7 \text{ (false)} ## 7
        \text{not } 7 ## 7
        \text{at least } 7 ## 7
        \text{less than } 7 ## 7
        \text{at most }7 ## 7
        7\text{ or more} ## 7
        7\text{ or less} ## 7
        \geq 7 ## 7
        \cancel{7} ## 7
        \sout{7} ## 7
        \#7 ## 7
        No. 7 ## 7
        7 ??? ## 7
        7 \lor 8 ## 7
        y=\pm x ## y=x
        x\ne 1 ## 1
        x\notin\{1\} ## \{1\}
        x\not\in\{1\} ## \{1\}
        x \not= 3 ## x=3
        5\text{ or more} ## 5
        大于5 ## 5
        不是5 ## 5
        至少5 ## 5
        15 more miles ## 15
        x=1 \lor x=3 ## 1,3
        x\le5 ## x<5
        \text{not red} ## \text{red}
    """,
    "letters": r"""
        |a+b| ## a+b
        \sqrt{(a+b)^2} ## a+b
        \int_0^x 1.0000001dt ## x
        \int_0^1 (1+10^{-40}) dx ## 1
        \int_0^1 (1+10^{-20}) dx ## 1
        R-r ## r-R
        Tom ## Mot
        SE ## ES
        cat ## act
        7 factorial ## 7
        \vec{a} ## \vec{b}
        7 or 8 ## 7
        \sqrt{x^2} ## x
        \ln(x^2) ## 2\ln x
        1.0000005x ## x
        a+b+10^{-12} ## a+b
        |x-3| ## x-3
        \max(a,b) ## a
        |ab| ## ab
        |a||b| ## ab
        \sqrt{a^2} ## a
        e^{x} ## e^{x}+10^{-9}
        \frac{|x|}{x} ## 1
        \lfloor x \rfloor ## x
        q-p ## p - q
        twice 5 ## 5
        x ## |x|
        \text{June 21} ## \text{June 20}
        5 k ## 5
        5k ## 5000
        5K ## 5
        x^{12} ## x^{21}
        \ln x + C ## \ln|x|+C
        2\ln x ## \ln x^2
        (-1)^n ## (-1)^{n+1}
        a^2-b^2 ## (a-b)^2
        a+b ## a+2b
        |a|+|b| ## a+b
        \max(x,0) ## x
        x+|x| ## 2x
        \frac{x+|x|}{2} ## x
        \sqrt{(x-1)^2} ## x-1
        \sqrt{(x-100)^2} ## 100-x
        |x-1000| ## 1000-x
        |x+1000| ## x+1000
        1+10^{-15}x ## 1
        x+0.000001 ## x
        x+0.0000001 ## x
        0.3333x ## \frac{x}{3}
        3.14159r^2 ## \pi r^2
        (x+1)^{10} ## (x+1)^{11}
        x^{10} ## x^{10}+1
        x \to 1 ## 1
        a-bi ## a+bi
        -i ## i
        20 cups of feed ## 20
        \text{all real numbers} ## \mathbb{R}
        C(10,3) ## 120
        \frac{1}{2}mv^2 ## mv^2
        v_0 ## v_1
        \Delta ## \delta
        \text{East} ## \text{West}
        \text{Alice and Bob} ## \text{Bob and Alice}
        \text{Yes} ## \text{No}
        \text{isosceles triangle} ## \text{isosceles}
        \text{non-isosceles} ## \text{isosceles}
        \text{increasing} ## \text{decreasing}
        \text{second} ## 2
        D. 5 ## D
    """,
    "marks": r"""
        x\cdot 1.000001 ## x
        7_{\text{max}} ## 7
        10₀ ## 10
        7_8 ## 7
        10_2 ## 10
        7\bar{3} ## 73
        \overline{7} ## 7
        \bar{x} ## x
        \hat{x} ## x
        \dot{x} ## x
        x_1 ## x_2
        x_1 ## x
        x^* ## x
        x\cdot 1.00001 ## x
        52 ## 52_8
        A^c ## A
        \overline{A} ## A
        \bar A ## A
        A^T ## A
        \mathbf{v} ## \vec{v}
        x_{n+1} ## x_n
        x_{n}+1 ## x_{n+1}
        a_{12} ## a_{21}
        5_{10} ## 5
        11_2 ## 11_3
        7^+ ## 7
        7^- ## 7
        7^* ## 7
        7\ldots ## 7
        7.\overline{1} ## 7.1
        7\dots 9 ## 79
        A^{\top} ## A
        (AB)^T ## AB
        1,2,\ldots ## 1,2
        f\circ g ## g \circ f
        b_2 ## b_3
        _{10}C_3 ## 120
    """,
    "names and equations": r"""
        x=1 ## y=1
        E=mc^2 ## E=mc^3
        z = 1+i ## z=1-i
        a=3,b=2 ## a=2,b=3
        x+y=5 ## x+y=6
        y = x^2 ## x = y^2
    """,
    "numbers": r"""
        1 2 3 ## 6
        -7 ## 7
        7+ ## 7
        1/2/3 ## 1/6
        2 3 ## 6
        -5 ## 5
        [2,3] ## (2,3)
        0.333 ## 1/3
        3.14 ## \pi
        5 ## 5-8
        5,8 ## 5-8
        5! ## 5
        5^2 ## 52
        5^{10} ## 510
        1 2 ## 12
        12 34 ## 1234
        (1,2],[3,4) ## (1,2]\cup[3,4)
    """,
    "primes": r"""
        7' ## 7
        1'0 ## 10
        x' ## x
        f'(x) ## f(x)
        y''=0 ## y=0
        f''(x)=2 ## f'(x)=2
        A' ## A
        10 o'clock ## 10
        2'6" ## 30 inches
    """,
    "scales": r"""
        7 tenths ## 7
        7 thirds ## 7
        7 lakh ## 7
        7 crore ## 7
        7 gross ## 7
        7\text{ hundredths} ## 7
        7\text{ bn} ## 7
        5 tenths ## 5
        7 million ## 7
        half of 7 ## 7
        7 squared ## 7
        7 cubed ## 7
        5 ten-thousandths ## 5
        5‰ ## 5
    """,
    "units": r"""
        25 °C ## 25 °F
        \$5 ## €5
        \$5 ## 5 cents
        5 MHz ## 5 kHz
        5 kPa ## 5 Pa
        5 mA ## 5 A
        5 rad ## 5°
        36° ## 36 cm
        36\% ## 36 cm
        5 W ## 5 kW
        5 mW ## 5 MW
        5 apples ## 5 oranges
        NE ## EN
        5 cm ## 5 m
        5 m^2 ## 5 m
        5 m/s ## 5 km/h
        5 s ## 5 min
        £5 ## \$5
        ¥5 ## \$5
        ₹5 ## \$5
        5 yuan ## 5 dollars
        5 percent ## 5 cm
        \$5 ## 5\%
        5 L ## 5 mL
        5 kcal ## 5 cal
        5 V ## 5 A
        5 ohm ## 5 kΩ
        5 ft ## 5 in
        5 years ## 5 months
        5\text{ units}^2 ## 5\text{ units}^3
        9.8 N/kg ## 9.8\,\mathrm{m/s^2}
        13 m ## 13cm
        4.5 cm ## 4.5 cm^2
        \text{no solution} ## \text{no real solutions}
        \$20 ## £20
        €20 ## 20\text{ dollars}
        5\text{ kg} ## 500\text{ g}
        60 km/h ## 60 m/s
        \frac{\pi}{2} ## 90^\circ
        A ## \text{(C)}
        3\,\text{cm}^2 ## 3\,\mathrm{cm^3}
        5° ## 5 radians
        A^{-1} ## A
        7\% ## 0.7
        \sqrt{1-\sin^2x} ## \cos x
        \frac{\sin x}{x} ## 1
        5\text{ each} ## 5
        5个苹果 ## 5个梨
        5元 ## 5角
        5% ## 5元
        30平方厘米 ## 30立方厘米
        12 cm ## 120 m
        1 hour 20 minutes ## 1.2 hours
        1 month ## 30 days
        HK\$5 ## \$5
        A\$5 ## US\$5
        5 pounds ## 5 kg
        5 lb ## £5
        \$5 per hour ## \$5
        5 students ## 5 teachers
        5 people ## 5 persons
        5\text{ square units} ## 5\text{ cubic units}
        5 ball ## 5
        5 percentage points ## 5\%
        \$70,000 profit ## 70000
        70000 dollars profit ## 70000
        \emptyset ## \text{no solution}
        n = 5 ## m = 5
        \sin 30 ## 0.5
        \lambda ## \mu
        A B ## AB
        AB ## A,B
    """,
}


def pairs(lines: str) -> list[list[str]]:
    return [line.strip().split(" ## ") for line in lines.strip().splitlines()]


def judged(answer: str, reference: str) -> bool:
    try:
        return verify_symbolic(answer, reference)
    except Unscorable:
        return False


@pytest.mark.parametrize("kind", UNEQUAL)
def test_what_is_not_equal_is_not_called_equal(kind):
    wrong = [pair for pair in pairs(UNEQUAL[kind]) if judged(*pair) or compare_plainly(*pair)]
    assert wrong == []
