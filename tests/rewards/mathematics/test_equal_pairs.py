"""Pairs of answer and reference that are equal, by kind; the answer stands first."""

import pytest

from rewards.mathematics.answer import compare_plainly, verify_symbolic

EQUAL = {
    "dates, times, ranges, ratios": r"""
        3 to 4 ## 3:4
        3\colon 4 ## 3:4
        3∶4 ## 3:4
        \text{Total: }5 ## 5
        2021年3月5日 ## 2021年3月5日
        2021-03-05 ## 2021年3月5日
        1:2:3 ## 2:4:6
        3:2:1 ## 6:4:2
        1:2:3 ## 1:2:3
        2021-2022 ## 2021–2022
        3-5 ## 3 - 5
        10:30 ## 10:30
        10 p.m. ## 10 \text{ p.m.}
        2:3 ## \frac{2}{3}
        6:20 ## 6:20\text{ p.m.}
        1/3 ## 1:3
        1 : 3 ## 1:3
        2:6 ## 1:3
        3/10 ## 3:10
        3 : 10 ## 3:10
        5 to 8 ## 5:8
        5 to 8 ## 5-8
        2:3:4 ## 4:6:8
        x:y:z=2:3:4 ## 2:3:4
        \sqrt{3}:2:1 ## \sqrt3 : 2 : 1
        3月5日 ## 3月5日
        2021年 ## 2021
        ma ## am
    """,
    "denials and bounds": r"""
        \approx 3.14 ## 3.14
        x=\pm 2 ## 2,-2
        x>2 ## (2,\infty)
        5 ppm ## 5
        \{x \mid x > 2\} ## x>2
        \frac{-b\pm\sqrt{b^2-4ac}}{2a} ## \frac{-b\pm\sqrt{b^2-4ac}}{2a}
        x\approx 1.41 ## 1.41
        约5 ## 5
        x>5或x<-5 ## x<-5 \text{ or } x>5
        x = -1 \pm \sqrt{2} ## -1+\sqrt{2}, -1-\sqrt{2}
        x<5 ## 5>x
        0<x<5 ## (0,5)
        |x|<3 ## -3<x<3
    """,
    "letters": r"""
        a - b ## a-b
        p-q ## p - q
        -b+a ## a-b
        15 ## 15m
        Rs. 500 ## 500
        \text{The answer is }5 ## 5
        R-r ## -r+R
        ab ## ba
        xy ## yx
        \sqrt{ab} ## \sqrt{ba}
        \ln a+\ln b ## \ln a+\ln b
        \frac{a}{b} ## a/b
        0.166667x ## \frac{x}{6}
        1.50x ## 1.5x
        0.5x ## \frac{x}{2}
        5 children ## 5
        \sqrt{a^2+b^2} ## \sqrt{b^2+a^2}
        \ln(ab) ## \ln(ba)
        \log_2 8 ## 3
        n(n+1)/2 ## \frac{n^2+n}{2}
        \frac{\sqrt{gl}}{l} ## \frac{\sqrt{gl}}{l}
        -q+p ## p - q
        e^{i\pi} ## -1
        i ## \sqrt{-1}
        x^2 - 2x + 1 ## (1-x)^2
        \ln 4 ## 2\ln 2
        \log(x^3) ## 3\log x
        \ln(a/b) ## \ln a-\ln b
        |x| ## \sqrt{x^2}
        \arctan x ## \tan^{-1} x
        \frac{1}{\tan x} ## \cot x
        \sqrt[3]{x^3} ## x
        x^{1/3} ## \sqrt[3]{x}
        x^{2/3} ## \sqrt[3]{x^2}
        \frac{a^2-b^2}{a-b} ## a+b
        a^{-1} ## \frac1a
        5e3 ## 5000
        f^{-1}(x) ## \frac{1}{f(x)}
        0.333\ldots ## \frac13
        \frac{1}{2}x^{-\frac12} ## \frac{1}{2\sqrt x}
        e^{2x}\cos x ## \cos(x)e^{2x}
        \frac{x^3}{3}+C ## \frac{1}{3}x^3+C
        \ln|x|+C ## \ln|x| + C
        \frac{\ln x}{\ln 2} ## \log_2 x
        n^2+n ## n(n+1)
        (-1)^n ## (-1)^{n+2}
        \frac{n!}{(n-1)!} ## n
        \binom{n}{2} ## \frac{n(n-1)}{2}
        a^2-b^2 ## (a+b)(a-b)
        |x|^2 ## x^2
        x^{0} ## 1
        \frac{x}{x} ## 1
        0.333333x ## \frac{x}{3}
        1.4142136x ## \sqrt2 x
        x＝5 ## 5
        3 bolts ## 3
        540 meters ## 540
        260 sheep ## 260
        45 miles ## 45
        366 downloads ## 366
        6 jewels ## 6
        14 gallons ## 14
        1430 cars ## 1430
        80 vaccinations ## 80
        -1\leqslant x\leqslant 1 ## [-1,1]
        \binom{10}{3} ## 120
        \log_{10} 100 ## 2
        \lg 100 ## 2
        \pi r^2 ## \pi r^{2}
        2\pi r ## 2πr
        \frac{4}{3}\pi r^3 ## \frac{4\pi r^3}{3}
        4πr² ## 4\pi r^2
        \frac{mv^2}{r} ## mv^2/r
        \frac{1}{2}mv^2 ## \frac{mv^2}{2}
        v_0 t+\frac12 a t^2 ## v_0t+\frac{at^2}{2}
        V_{max} ## V_{\max}
        \alpha+\beta ## \beta+\alpha
        \omega^2 ## ω^2
        \text{Alice} ## Alice
        \text{red} ## red
        \text{Red} ## \text{red}
        \text{True} ## \text{true}
        \text{1st} ## 1
        (D) ## D
        \text{D} ## (D)
        D. ## D
    """,
    "marks": r"""
        7_8 ## 7_8
        1010_2 ## 1010_{2}
        A_1 = 5 ## 5
        a^{b+c} ## a^b a^c
        2, 3 ## x_1=2,x_2=3
        101_2 ## 5_{10}
        11_2 ## 3_{10}
        FF_{16} ## 255_{10}
        A^T ## A^{T}
        a_{12} ## a_{12}
        a_1 ## a_1
        b_2 ## b_2
        c_1+c_2x ## c_1 + c_2 x
        2^{n}\cdot 2 ## 2^{n+1}
        a_i=2i ## a_i=2i
        x_1 = 1, x_2 = 3 ## 1, 3
        C_{10}^3 ## 120
        V_{\text{max}} ## V_{max}
    """,
    "names and equations": r"""
        z = 6-5i ## 6-5i
        x=i ## i
        area = 5 ## 5
        time = 5 ## 5
        speed = 5 ## 5
        I = 5 ## 5
        BI = 5 ## 5
        5=x ## 5
        x=2, y=3 ## x=2,y=3
        k = 3 ## 3
        \text{Area} = 5 ## 5
        \text{Area} = 12\pi ## 12\pi
        x=2 or x=3 ## 2, 3
        \sum_{k=1}^n k ## \frac{n(n+1)}{2}
        y=x ## x=y
        x = 1 ## 1
        1 = x ## 1
        AB=CD ## AB = CD
        \text{Area of } ABC = 5 ## 5
        BE=5 ## 5
        DE=5 ## 5
        IE=5 ## 5
        e=5 ## 5
        E = 5 ## 5
        E=mc^2 ## E = mc^2
        v_e = 5 ## 5
        xy=6 ## y=\frac{6}{x}
        z=1+i ## 1+i
        w=2e^{i\pi/3} ## 1+\sqrt3 i
        z=3 ## 3
        i=3 ## 3
        y=−2x+1 ## y=-2x+1
        a=2,b=3 ## a=2, b=3
        b=3,a=2 ## a=2,b=3
        (a,b)=(2,3) ## (2,3)
        n=5 ## 5
        n=5 ## n=5
        5 = n ## n=5
        F=ma ## F = ma
        x+y=5 ## y+x=5
        x+y=5 ## y=5-x
        x+y=5 ## 2x+2y=10
        \frac{x^2}{4}+\frac{y^2}{9}=1 ## 9x^2+4y^2=36
        y-3=2(x-1) ## y=2x+1
    """,
    "numbers": r"""
        12,34,567 ## 1234567
        10²³ ## 10^{23}
        10⁻³ ## 0.001
        1.234.567 ## 1234567
        1.234,56 ## 1234.56
        1,234 ## 1234
        (1,2) ## (1,2)
        -\frac{1}{2} ## -0.5
        11111111100 ## 11,\! 111,\! 111,\! 100
        1.8 ## 1 \frac{4}{5}
        8\pi ## 8π
        \{2\} ## 2
        2\frac12 ## 2.5
        2\cdot\frac12 ## 1
        \sqrt2/2 ## \frac{1}{\sqrt2}
        3 000 ## 3000
        10^{-3} ## 0.001
        (2,3) ## （2，3）
        18 ## 18
        18.00 ## 18
        70,000 ## 70000
        64 ## 64
        57,500 ## 57500
        25000 ## 25,000
        (−1, 2) ## (-1,2)
        [−1,1] ## [-1,1]
        \frac{22}{7} ## 22/7
        3\frac{1}{7} ## 22/7
        3 1/7 ## 22/7
        -3 1/7 ## -22/7
        2^{10} ## 1024
        1024 ## 2^{10}
        10! ## 3628800
    """,
    "primes": r"""
        30^\circ 30' ## 30.5°
        1'234 ## 1234
        f'(x) ## f'(x)
        f'(x)=2x ## 2x
        y''=0 ## y''=0
        x' ## x'
        f'(2) = 3 ## 3
        3 ## f'(2)=3
    """,
    "relations": r"""
        AB \parallel CD ## AB\parallel CD
        CD \parallel AB ## AB\parallel CD
        AB \perp CD ## AB\perp CD
        \triangle ABC \sim \triangle DEF ## \triangle ABC \sim \triangle DEF
    """,
    "scales": r"""
        5 tenths ## 0.5
        2 dozen ## 24
        7 lakh ## 700000
        3 hundredths ## 0.03
        2 million ## 2000000
        2 million dollars ## \$2000000
        3 dozen ## 36
        3 dozen eggs ## 36
        5 hundred ## 500
        1.5 million ## 1500000
        15 thousand dollars ## \$15,000
        5 thousandths ## 0.005
        5‰ ## 0.005
    """,
    "units": r"""
        width = 5 ## 5
        9\pi ## 9\pi cm^{2}
        15\text{ m} ## 15m
        5 ## 5\,\Omega
        5\,\Omega ## 5 ohms
        5\frac{m}{s} ## 5 m/s
        5 ## 5\frac{m}{s}
        25 ## 25\,\mathrm{^\circ C}
        25°C ## 25\,\mathrm{^\circ C}
        2\text{ h }30\text{ min} ## 2\text{ h }30\text{ min}
        150 minutes ## 2\text{ h }30\text{ min}
        2 hours 30 minutes ## 2\text{ h }30\text{ min}
        5海里 ## 5
        25摄氏度 ## 25°C
        5伏特 ## 5 V
        5安培 ## 5\text{ A}
        5欧姆 ## 5\Omega
        5斤 ## 5
        5亩 ## 5
        5小时 ## 5 h
        (\sqrt{2}+1)小时 ## \sqrt{2}+1
        ₹1,00,000 ## 100000
        5 apples ## 5
        5 apples ## 5 apple
        1 apple ## 1
        12 students ## 12
        \$5 ## 5
        \$5 ## 5 dollars
        5 USD ## \$5
        €5 ## 5 euros
        £5 ## 5 pounds
        5 percent ## 5\%
        36 square units ## 36 cm^2
        36 square units ## 36
        5 m/s ## 5 meters per second
        5 km/h ## 5 kilometers per hour
        5 kmh ## 5 km/h
        60 mph ## 60 miles per hour
        5 m s^{-1} ## 5 m/s
        5 m\,s^{-2} ## 5\text{ m/s}^2
        5 cm ## 5 centimeters
        5\text{ cubic feet} ## 5\text{ ft}^3
        5 kg·m/s ## 5\text{ kg m/s}
        5 N·m ## 5 N m
        100 cm ## 1 m
        1000 m ## 1 km
        5 people ## 5
        12 ways ## 12
        12 times ## 12
        3 integers ## 3
        3 distinct solutions ## 3
        45 degrees ## 45^\circ
        45 degrees ## 45
        2.5 hours ## 2.5
        5\mu m ## 5 \mu m
        5μm ## 5 micrometers
        \frac{\pi}{2} rad ## \frac{\pi}{2}
        V = 9\pi ## 9\pi
        \mathrm{m} = 3 ## 3
        r = 2\text{ cm} ## 2
        \sin^2 x+\cos^2 x ## 1
        90 ## 90^\circ
        90° ## 90^\circ
        18.90 ## \$18.90
        18.9 ## \$18.90
        5.4 ## 5.4 \text{ cents}
        6 ## 6 \text{ inches}
        (-\infty,-0.5)\cup(3,\infty) ## (-\infty, -\frac{1}{2}) \cup (3, \infty)
        6.72\times10^{-5} ## .0000672
        10 ## 10\%
        24 students ## 24\text{ (students)}
        24 ## 24\text{ (students)}
        17 ## 17\text{ years old}
        17 years ## 17\text{ years old}
        9.8 ## 9.8\,\mathrm{m/s^2}
        9.8 m/s² ## 9.8\,\mathrm{m/s^2}
        40 in ## 3\text{ ft }4\text{ in}
        54 ## 54 ^{\circ}
        15\sqrt{3} ## 15\sqrt{3}cm
        15\sqrt{3} cm ## 15\sqrt{3}
        13 ## 13cm
        20 ## 20%
        0.2 ## 20%
        10 ## 10Ω
        10 ohms ## 10Ω
        2\text{ m/s} ## 2m/s
        2 ## 2m/s
        4.5 ## 4.5 cm^2
        \text{Area}=5\text{ cm}^2 ## 5
        1,000 ## \$1{,}000
        20 ## £20
        20 pounds ## £20
        200 cents ## \$2
        0.5 km ## 500 m
        500 m ## 0.5 km
        30 minutes ## 0.5 hours
        5 mL ## 5 cm^3
        1 L ## 1000 mL
        5\text{ kg} ## 5000\text{ g}
        36 km/h ## 10 m/s
        12 in ## 1 ft
        50 times ## 50
        \tan\theta ## \frac{\sin\theta}{\cos\theta}
        3 cm ## 3\,\mathrm{cm}
        3\mathrm{~cm} ## 3
        3\,\text{cm}^2 ## 3\,\mathrm{cm^2}
        x^{\circ} ## x
        (2x)^\circ ## 2x
        \sin(2x) ## 2\sin x\cos x
        \cos(2x) ## 1-2\sin^2 x
        \sin^{-1}(x) ## \arcsin x
        x \in \{1,2\} ## \{1,2\}
        \angle A=30^\circ ## 30
        \angle ABC = 30° ## 30^\circ
        m\angle A = 30 ## 30
        AB = 5\text{ cm} ## 5
        PE = mgh ## mgh
        velocity = 5 m/s ## 5
        time = 2.5 hours ## 2.5
        distance=30km ## 30
        price = \$5 ## 5
        5个苹果 ## 5
        5个 ## 5只
        共5个 ## 5
        5千米 ## 5 km
        5千米 ## 5000 m
        5公里 ## 5千米
        5元 ## 50角
        3倍 ## 3
        30平方厘米 ## 30 cm^2
        2小时30分钟 ## 2.5小时
        12.0\text{ cm} ## 12\text{ cm}
        120 mm ## 12 cm
        2 feet 6 inches ## 30 inches
        1 hour 20 minutes ## 80 minutes
        1h20min ## 80\text{ min}
        3 days ## 72 hours
        1 week ## 7 days
        1 year ## 12 months
        5 dollars and 20 cents ## \$5.20
        \$5.20 ## 520 cents
        \$5.20 ## 5.20
        5.20 USD ## \$5.20
        \$5 per hour ## 5
        5 units ## 5 cm
        5 sq. units ## 5\text{ units}^2
        5 red balls ## 5 balls
        5 balls ## 5
        1 ball ## 1
        0 solutions ## 0
        5 pairs ## 5
        5 percent ## 0.05
        5 pct ## 5\%
        \$18 ## 18
        18 dollars ## 18
        \$18.00 ## 18
        160 minutes ## 160
        460 ## \$460
        \$694 ## 694
        13 years old ## 13
        18 eggs per day ## 18
        60 cents ## 60
        125\% ## 125
        230 pounds ## 230
        104 hours ## 104
        109 feet ## 109
        35 inches ## 35
        \frac{1}{2} hour ## 30 minutes
        1.5 hours ## 90 minutes
        \left(\frac{1}{2},\frac{3}{4}\right) ## (0.5, 0.75)
        \mathbb{R} ## (-\infty,\infty)
        x \in \mathbb{R} ## \mathbb{R}
        \sin 30^\circ ## \frac12
        \cos 60° ## 0.5
        \tan 45^{\circ} ## 1
        mgh ## mgh
        mgh ## hgm
        \sqrt{2gh} ## \sqrt{2gh}
        \sqrt{2gh} ## \sqrt{2hg}
        \theta = 30^\circ ## 30
        90-\theta ## 90^\circ-\theta
        180^\circ - 2x ## 180-2x
        \text{Tuesday} ## Tuesday
        \text{A, B} ## A,B
        A, B, C ## C, B, A
    """,
    "what stands around a number": r"""
        \text{about } 7 ## 7
        \underline{7} ## 7
        7 loaves ## 7
    """,
}


def pairs(lines: str) -> list[list[str]]:
    return [line.strip().split(" ## ") for line in lines.strip().splitlines()]


@pytest.mark.parametrize("kind", EQUAL)
def test_what_is_equal_is_called_equal(kind):
    lost = [pair for pair in pairs(EQUAL[kind]) if not verify_symbolic(*pair) or compare_plainly(*pair) is False]
    assert lost == []
