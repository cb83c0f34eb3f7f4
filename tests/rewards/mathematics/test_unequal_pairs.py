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
        5 knots ## 5 mph
        5 below ## 5
        5 less than x ## 5
        5 more ## 5
        10 more apples ## 10
        \pm2 ## 2
        \lnot p ## p
        \neg p ## \neg q
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
        \vec{a} ## \vec{b}
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
        10₀ ## 10
        10_2 ## 10
        7\bar{3} ## 73
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
        5 tenths ## 5
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
    "what stands around a number": r"""
        7 tenths ## 7
        7 thirds ## 7
        7 lakh ## 7
        7 crore ## 7
        7 gross ## 7
        7 wrong ## 7
        7_{\text{max}} ## 7
        7_8 ## 7
        7' ## 7
        \not=7 ## 7
        \ne 7 ## 7
        7\text{ hundredths} ## 7
        7\text{ bn} ## 7
        7\text{ below zero} ## 7
        7\text{ at least} ## 7
        7\text{ incorrect} ## 7
        7 minus ## 7
        7 negative ## 7
        7 less ## 7
        \lnot 7 ## 7
        7 nope ## 7
        7 million ## 7
        half of 7 ## 7
        7 squared ## 7
        7 cubed ## 7
        7 factorial ## 7
        \overline{7} ## 7
        -7 ## 7
        7+ ## 7
        \pm 7 ## 7
        > 7 ## 7
        \approx 7.5 ## 7
        < 7 ## 7
        7? ## 7
        7 or 8 ## 7
        7 not ## 7
        7 \text{ is wrong} ## 7
        7 \text{ (false)} ## 7
        \text{not } 7 ## 7
        \text{at least } 7 ## 7
        \text{less than } 7 ## 7
        \text{at most }7 ## 7
        7\text{ or more} ## 7
        7\text{ or less} ## 7
        \geq 7 ## 7
        7^+ ## 7
        7^- ## 7
        7^* ## 7
        \cancel{7} ## 7
        \sout{7} ## 7
        7\ldots ## 7
        \#7 ## 7
        No. 7 ## 7
        7 ??? ## 7
        7 \lor 8 ## 7
        7 (no) ## 7
        7 is incorrect ## 7
        not equal to 7 ## 7
        ≠7 ## 7
        7 ✗ ## 7
        7❌ ## 7
        \text{wrong: }7 ## 7
        7 \text{ does not work} ## 7
        \text{Answer: not }7 ## 7
        7 \neq ## 7
        7 or not ## 7
        no 7 ## 7
        non-7 ## 7
        \text{seventh} ## 7
        7-ish ## 7
        7, not ## 7
        7... ## 7
        7 M ## 7
        7 G ## 7
        7 kilo ## 7
        7 mega ## 7
        7 mil ## 7
        7 score ## 7
        7 halves ## 7
        7 quarters ## 7
        7 eighths ## 7
        7 sixteenths ## 7
        7 to the power of 2 ## 7
        7 over 2 ## 7
        7 choose 2 ## 7
        7 mod 3 ## 7
        7 \bmod 3 ## 7
        7 and a half ## 7
        7 plus ## 7
        7 or so ## 7
        7 something ## 7
        7 impossible ## 7
        7 undefined ## 7
        7 \text{ or } 8 ## 7
        7 billion ## 7
        7 myriad ## 7
        7 dozens ## 7
        7 grand ## 7
        7K ## 7
        7 hundred ## 7
        7 percent of 10 ## 7
        7\%\text{ of }10 ## 7
        7\cdot ## 7
        \frac{7}{} ## 7
        7^{} ## 7
        7^\text{o} ## 7
        7\circ ## 7
        7! ## 7
        7!! ## 7
        \sqrt{7} ## 7
        \sqrt[7]{} ## 7
        \lceil 7.1 \rceil ## 7
        7.00001 ## 7
        0.7 ## 7
        .7 ## 7
        70 ## 7
        7e1 ## 7
        7i ## 7
        7x ## 7
        x7 ## 7
        7_a ## 7
        7^a ## 7
        7'' ## 7
        7" ## 7
        7\prime ## 7
        7 1 ## 7
        1 7 ## 7
        7;8 ## 7
        7|8 ## 7
        7/8 ## 7
        7:8 ## 7
        <7> ## 7
        '7' ## 7
        *7* ## 7
        _7_ ## 7
        #7 ## 7
        @7 ## 7
        7 ok ## 7
        7 false ## 7
        7 true ## 7
        7 correct ## 7
        7 yes ## 7
        the answer is not 7 ## 7
        the answer isn't 7 ## 7
        x≠7 ## 7
        x\ge7 ## 7
        7>x ## 7
        7=8 ## 7
        8=7 ## 7
        7,000 ## 7
        7,0 ## 7
        7 000 ## 7
        \pm7 ## 7
        \mp7 ## 7
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
