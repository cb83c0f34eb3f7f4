"""Answers and references as textbooks of mathematics and physics write them, each with the right verdict."""

import pytest

from rewards.mathematics.answer import verify_symbolic

PAIRS = r"""
    \frac{\sqrt{6}}{3} ## \sqrt{\frac{2}{3}} ## 1
    \frac{2\sqrt{3}}{3} ## \frac{2}{\sqrt{3}} ## 1
    1-\frac{1}{e} ## \frac{e-1}{e} ## 1
    \ln\frac{3}{2} ## \ln 3-\ln 2 ## 1
    -\ln 2 ## \ln\frac12 ## 1
    2+2\sqrt{3} ## 2(1+\sqrt3) ## 1
    \frac{a}{1-r} ## \frac{a}{1 - r} ## 1
    \frac{-1+\sqrt{5}}{2} ## \frac{\sqrt5-1}{2} ## 1
    x^2-4x+4 ## (x-2)^2 ## 1
    (x-2)(x-3) ## x^2-5x+6 ## 1
    -\frac{1}{x^2} ## -x^{-2} ## 1
    \sqrt{x} ## x^{\frac{1}{2}} ## 1
    3x^{2} \cos(x^{3}) ## 3x^2\cos x^3 ## 1
    \frac{1}{2}(e^x+e^{-x}) ## \cosh x ## 1
    \sec^2 x ## \frac{1}{\cos^2 x} ## 1
    \tan x + C ## C+\tan x ## 1
    e^{2x}+C ## e^{2x} ## 0
    \left[0,\frac{\pi}{2}\right] ## [0,\pi/2] ## 1
    \{0, 1, 2\} ## \{2,1,0\} ## 1
    \{x: 0<x<1\} ## (0,1) ## 1
    (x-1)^2+(y-2)^2=9 ## (x-1)^2+(y-2)^2=3^2 ## 1
    2x-3y+1=0 ## 3y-2x-1=0 ## 1
    y=\frac{2}{3}x+\frac13 ## 2x-3y+1=0 ## 1
    a_n=2n+1 ## 2n+1 ## 1
    a_n = 2n + 1 ## a_n=2n-1 ## 0
    S_n = n^2 ## n^2 ## 1
    f(x)=x^2 ## x^2 ## 1
    f(x) = x^2 ## g(x)=x^2 ## 0
    \overrightarrow{AB} ## \overrightarrow{AB} ## 1
    \begin{bmatrix}1&0\\0&1\end{bmatrix} ## \begin{pmatrix}1 & 0\\ 0 & 1\end{pmatrix} ## 1
    \begin{vmatrix}1&0\\0&1\end{vmatrix} ## 1 ## 1
    3.0 \times 10^8 \text{ m/s} ## 3\times10^8\,\mathrm{m/s} ## 1
    3 \times 10^8 ## 3\times 10^{8}\text{ m/s} ## 1
    300000000 ## 3\times 10^8 ## 1
    6.63\times 10^{-34}\,\text{J}\cdot\text{s} ## 6.63\times10^{-34} ## 1
    1.2\,\mathrm{kN} ## 1200\,\mathrm{N} ## 1
    0.5\,\text{A} ## 500\,\text{mA} ## 1
    5.0\,\Omega ## 5\,\Omega ## 1
    20\,\text{cm/s} ## 0.2\,\text{m/s} ## 1
    2\,\text{rad/s} ## 2\text{ rad/s} ## 1
    2\,\text{rad/s} ## 2\text{ m/s} ## 0
    9.8\ \text{N} ## 9.8\ \text{kg} ## 0
    100\,^\circ\text{C} ## 100^\circ C ## 1
    373 K ## 373\text{ K} ## 1
    100^\circ\text{C} ## 373\text{ K} ## 0
    75 kg/m^3 ## 75\text{ kg/m}^3 ## 1
    1 g/cm^3 ## 1000\text{ kg/m}^3 ## 1
    45 m/s^2 ## 45\text{ m/s} ## 0
    4.2\,\text{J/(g}\cdot\text{K)} ## 4.2 ## 1
    12 V ## 12\text{ V} ## 1
    5\text{cm} ## 5 ## 1
    5\mathrm{\,cm} ## 5\text{ cm} ## 1
    5\operatorname{cm} ## 5\text{ cm} ## 1
    5{\rm cm} ## 5\text{ cm} ## 1
    (5, 12) ## (5,12) ## 1
    A(5,12) ## (5,12) ## 1
    (5;12) ## (5,12) ## 1
    x=5,\ y=12 ## (5,12) ## 1
    x=12, y=5 ## (5,12) ## 0
    5 \text{ and } 12 ## 5, 12 ## 1
    5 or 12 ## 12, 5 ## 1
    \text{5 and 12} ## 5,12 ## 1
    5\&12 ## 5,12 ## 0
    3\text{ hours and }20\text{ minutes} ## 200\text{ minutes} ## 1
    3:20 ## 3:20 ## 1
    8:00 AM ## 8:00\text{ a.m.} ## 1
    8 AM ## 8:00\text{ a.m.} ## 1
    8:00 ## 8:00 PM ## 1
    20:00 ## 8:00 PM ## 0
    January 5 ## \text{January 5} ## 1
    5 January ## \text{January 5} ## 0
"""


@pytest.mark.parametrize("right", [True, False])
def test_textbook_answers(right):
    pairs = [line.strip().split(" ## ") for line in PAIRS.strip().splitlines()]
    asked = [(answer, reference) for answer, reference, verdict in pairs if (verdict == "1") is right]
    assert [pair for pair in asked if verify_symbolic(*pair) is not right] == []
