"""References as MATH, GSM8K and textbooks have them."""

from rewards.mathematics.answer import verify_symbolic

REFERENCES = r"""
    \left( 3, \frac{\pi}{2} \right)
    p - q
    \frac{14}{3}
    \text{Evelyn}
    90^\circ
    3\sqrt{13}
    2220
    \frac{3}{56}
    \sqrt{51}
    6 - 5i
    -50
    \pi
    6+9i
    x=5
    1,-2
    -2 + 7i
    52_8
    11\sqrt2
    3, 5, 7
    6r^2-4r-24
    70 \sqrt{2}
    11,\! 111,\! 111,\! 100
    x \in [-2,7]
    \{1\pm\sqrt{5},-2\}
    3R^2
    \dfrac{2}{21}
    4210_{5}
    \begin{pmatrix} -2 & 1 \\ 3 & 4 \end{pmatrix}
    (6,31,-1)
    \text{ellipse}
    (-\infty, -\frac{1}{2}) \cup (3, \infty)
    12\text{ cm}
    \$18.90
    10\%
    32,\!348
    (0,9) \cup (9,36)
    5.4 \text{ cents}
    2k+2
    (3,4]
    \text{June 20}
    \text{(C)}
    x^3+3x-6
    1 \pm \sqrt{19}
    -\frac{35}{9}
    15\mbox{ cm}^2
    80\text{ degrees}
    6 \text{ inches}
    18\text{ dollars}
    1 \frac{4}{5}
    .0000672
    (-\infty,2)\cup(3,\infty)
    [0,\infty)
    \cot x
    \sin \theta
    e^{2\pi i/7}
    2^{n+1}-1
    12 \text{ square units}
    1:3
    \frac{9}{256}
    2\sqrt{113}
    (-1,6)
    x^{2}-1
    -\sin x
    \frac{\sqrt{3}}{3}
    \text{Navin}
    y = 2x + 3
    6:20\text{ p.m.}
    3\text{ hours}
    \text{10 blue}
    k > 3
    -1 \le x < 4
    a_n = 2n-1
    \frac{x+2}{7}
    5\sqrt{2}\text{ m}
    7.5\text{ miles per hour}
    36\pi\text{ cubic inches}
    \left(-\infty,-8\right)\cup \left(-8,\infty\right)
    \frac{1}{4}\text{ cup}
    2 \text{ (mod 7)}
    \overline{AB}
    \angle ABC
    \triangle ABC
    \vec{v}
    \hat{i}+2\hat{j}
    \begin{cases} x=1 \\ y=2 \end{cases}
    \log_2 3
    \ln 2
    e^{-x}
    \frac{dy}{dx}=2x
    f^{-1}(x)=x-1
    f(x)=2x+1
    x_1=2,x_2=3
    \binom{n}{k}
    n!
    2n\pi
    \frac{\pi}{3}+2k\pi
    k\pi, k\in\mathbb{Z}
    \{x|x>2\}
    \sqrt[3]{2}
    \left|x\right|
    \lfloor x\rfloor
    0.\overline{3}
    3.14\times 10^{5}
    6.02e23
    20\text{ N}
    9.8\text{ m/s}^2
    9.8\,\mathrm{m/s^2}
    1.6\times10^{-19}\text{ C}
    25^{\circ}\text{C}
    4\,\Omega
    100\,\text{km/h}
    2\text{ kg}\cdot\text{m/s}
    50\,\text{J}
    3\text{ A}
    12\text{V}
    1.5\text{V}
    5N
    30\text{mph}
    2\text{ weeks}
    \text{Monday}
    \text{yes}
    \text{true}
    \text{infinitely many}
    \text{no real solutions}
    \text{undefined}
    \infty
    \text{I and II}
    \text{Type A}
    H_2O
    \text{CO}_2
    \frac{3}{4}\text{ of the cake}
    24\text{ (students)}
    17\text{ years old}
    7\text{ or }8
    5\text{ and }6
    \$1{,}000
    1,000\text{ dollars}
    \text{\$}5
    5\%\text{ per year}
    £20
    20 pounds
    3\text{ ft }4\text{ in}
    45^\circ\text{N}
    2x^{\prime}
    y''+y=0
    f'(2)=3
    x\neq 3
    x\ne 2
    3a^2b
    -ab
    abc
    OA
    AD
    2AB
    m=2n
    S=\pi r^2
    1/3
    100 ^\circ
    100^{\text{o}}
    54 ^{\circ}
    15\sqrt{3}cm
    6 cm
    3:2:1
    13cm
    8π
    72°
    2m/s
    0.5 s
    4.5 cm^2
    20%
    2√3
    x+2=0
    10Ω
"""


def test_a_plain_reference_is_scorable_and_equals_itself():
    lines = [line.strip() for line in REFERENCES.strip().splitlines()]
    assert [line for line in lines if not verify_symbolic(line, line)] == []
