// Curves as inline SVG. A pointer or the arrow keys show values; a click or Enter shows the rollouts of the step.
(() => {
  const stages = dataOf("charts-data");
  const W = 380, H = 170, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20;
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  function niceStep(range, count) {
    const rough = range / count, power = 10 ** Math.floor(Math.log10(rough)), part = rough / power;
    return power * (part > 5 ? 10 : part > 2 ? 5 : part > 1 ? 2 : 1);
  }

  function ticks(low, high, count) {
    const step = niceStep(high - low || 1, count), found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
    return found;
  }

  function path(steps, values, x, y) {
    let text = "", pen = "M";
    values.forEach((value, n) => {
      if (value === null) { pen = "M"; return; }
      text += `${pen}${x(steps[n]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }

  function chart(stage, title, names) {
    const other = stage.other, lines = [];
    names.forEach((name, n) => {
      lines.push({ name, color: n % 8, steps: stage.steps, values: stage.values[name], there: false });
      if (other?.values[name]) lines.push({ name, color: n % 8, steps: other.steps, values: other.values[name], there: true });
    });
    const all = lines.flatMap((line) => line.values).filter((value) => value !== null);
    const steps = lines.flatMap((line) => [line.steps[0], line.steps[line.steps.length - 1]]);
    let low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    const first = Math.min(...steps), last = Math.max(...steps);
    if (low >= 0 && (low < high * 0.5 || low === high)) low = 0;
    if (high === low) { high += Math.abs(high) * 0.1 || 1; low -= Math.abs(low) * 0.1; }
    const x = (step) => LEFT + (last > first ? (step - first) / (last - first) : 0.5) * (W - LEFT - RIGHT);
    const y = (value) => H - BOTTOM - ((value - low) / (high - low)) * (H - TOP - BOTTOM);
    const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: "0", "aria-label": title });
    for (const tick of ticks(low, high, 4)) {
      drawing.append(svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(tick), y2: y(tick) }));
      const label = svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" });
      label.textContent = shown(tick);
      drawing.append(label);
    }
    for (const tick of ticks(first, last, 5).filter(Number.isInteger)) {
      const label = svg("text", { x: x(tick), y: H - 5, "text-anchor": "middle" });
      label.textContent = tick;
      drawing.append(label);
    }
    for (const step of stage.falls) {
      if (title === "Reward and accuracy") drawing.append(svg("line", { class: "fell", x1: x(step), x2: x(step), y1: TOP, y2: H - BOTTOM }));
    }
    for (const line of lines) {
      drawing.append(svg("path", { class: `curve c${line.color}${line.there ? " there" : ""}`, style: "background:none", d: path(line.steps, line.values, x, y) }));
      if (line.values.filter((value) => value !== null).length === 1) {
        const n = line.values.findIndex((value) => value !== null);
        drawing.append(svg("circle", { cx: x(line.steps[n]), cy: y(line.values[n]), r: 2.5, class: `c${line.color}` }));
      }
    }
    const at = svg("line", { class: "at", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
    drawing.append(at);
    const legend = make("div", { class: "legend" });
    names.forEach((name, n) => legend.append(make("span", {}, make("i", { class: `c${n % 8}` }), name)));
    const card = make("div", { class: "chart" }, make("h3", {}, title), drawing, names.length > 1 || other ? legend : null);
    hover(card, drawing, at, stage, lines, x);
    return card;
  }

  function hover(card, drawing, at, stage, lines, x) {
    let place = -1, tip = null;
    const hide = () => { tip?.remove(); tip = null; at.setAttribute("visibility", "hidden"); };
    const show = (n) => {
      place = Math.max(0, Math.min(stage.steps.length - 1, n));
      const step = stage.steps[place];
      at.setAttribute("x1", x(step));
      at.setAttribute("x2", x(step));
      at.setAttribute("visibility", "visible");
      tip?.remove();
      tip = make("div", { class: "tip" }, make("b", {}, `step ${step}`));
      for (const line of lines) {
        const value = line.there ? line.values[line.steps.indexOf(step)] : line.values[place];
        const label = line.there ? `${line.name} of ${stage.other.label}` : line.name;
        if (value !== undefined) tip.append(make("div", {}, `${label} `, make("b", {}, shown(value))));
      }
      card.append(tip);
      const scale = drawing.clientWidth / W, left = x(step) * scale + 20;
      tip.style.top = `${drawing.offsetTop + 6}px`;
      tip.style.left = left + tip.offsetWidth > card.clientWidth ? `${Math.max(4, left - tip.offsetWidth - 26)}px` : `${left}px`;
    };
    drawing.addEventListener("pointermove", (event) => {
      const box = drawing.getBoundingClientRect();
      const wanted = ((event.clientX - box.left) / box.width) * W;
      let best = 0;
      stage.steps.forEach((step, n) => { if (Math.abs(x(step) - wanted) < Math.abs(x(stage.steps[best]) - wanted)) best = n; });
      show(best);
    });
    drawing.addEventListener("pointerleave", hide);
    drawing.addEventListener("blur", hide);
    const go = () => { if (place >= 0) browser.filter?.({ stage: stage.stage, step: String(stage.steps[place]) }); };
    drawing.addEventListener("click", go);
    drawing.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") show(place + 1);
      else if (event.key === "ArrowLeft") show(place < 0 ? 0 : place - 1);
      else if (event.key === "Enter") go();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  function draw(number) {
    const stage = stages[number], more = byId("more-box");
    [...byId("stage-tabs").children].forEach((tab, n) => tab.setAttribute("aria-pressed", n === number));
    const charts = stage.charts.map(([title, names]) => () => chart(stage, title, names));
    byId("charts").replaceChildren(...charts.slice(0, stage.named).map((build) => build()));
    more.hidden = charts.length === stage.named;
    const fill = () => { if (more.open) byId("more-charts").replaceChildren(...charts.slice(stage.named).map((build) => build())); };
    more.ontoggle = fill;
    fill();
    const every = stage.every > 1 ? `Every ${stage.every}th step is drawn. ` : "";
    byId("curves-note").textContent = stage.steps.length
      ? `${every}A click on a curve shows the rollouts of the step, where there are any.`
      : "This stage has no figures yet.";
  }

  const tabs = byId("stage-tabs");
  stages.forEach((stage, number) => {
    tabs.append(make("button", { type: "button", onclick: () => draw(number) }, stage.stage));
  });
  tabs.hidden = stages.length < 2;
  if (!stages.length) { byId("curves-note").textContent = "No stage has begun."; byId("more-box").hidden = true; return; }
  const ofRl = stages.findLastIndex((stage) => stage.values.reward), withSteps = stages.findLastIndex((stage) => stage.steps.length);
  draw(Math.max(0, ofRl >= 0 ? ofRl : withSteps));
})();
