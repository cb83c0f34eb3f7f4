// The browser of rollouts. Columns are filtered; blocks of texts and images are parsed when something of them is shown.
(() => {
  if (!byId("index")) return;
  const index = dataOf("index"), prompts = dataOf("prompts"), columns = index.columns;
  if (!byId("filters")) return;
  const PAGE = 25, count = columns.step.length, blocks = new Map();
  let found = [], place = 0;

  const block = (name) => {
    if (!blocks.has(name)) blocks.set(name, dataOf(name));
    return blocks.get(name);
  };
  const record = (n) => {
    const [text, span, answer, parts, reason, isCutOff, leftOut] = block(`rollouts-${Math.floor(n / index.block)}`)[n % index.block];
    return { text, span, answer, parts, reason, isCutOff, leftOut };
  };
  const image = (n) => block(`images-${Math.floor(n / index.imageBlock)}`)[n % index.imageBlock];
  const promptOf = (n) => {
    const [id, question, reference, dataset, images] = prompts[columns.prompt[n]];
    return { id, question, reference, dataset, images };
  };

  const input = {};
  for (const name of ["stage", "step", "verdict", "status", "drop", "mode", "least", "most", "text", "order"]) input[name] = byId(`f-${name}`);
  function choices(name, column, values, label = (value) => value) {
    const counts = new Map();
    for (const value of columns[column]) counts.set(value, (counts.get(value) ?? 0) + 1);
    input[name].append(make("option", { value: "" }, "all"));
    values.forEach((value, n) => {
      if (counts.get(n) && value !== "") input[name].append(make("option", { value: String(n) }, `${label(value)} (${counts.get(n)})`));
    });
    input[name].closest("label").hidden = input[name].options.length < (name === "drop" ? 2 : 3);
  }
  choices("stage", "stage", index.stages);
  choices("verdict", "verdict", index.verdicts);
  choices("status", "status", index.statuses);
  choices("drop", "drop", index.drops, (value) => `dropped: ${value}`);
  choices("mode", "mode", index.modes);
  const undropped = index.drops.indexOf("");
  const trained = columns.drop.filter((drop, n) => drop === undropped && columns.group[n] !== null).length;
  if (trained) input.drop.append(make("option", { value: "trained" }, `trained (${trained})`));
  if (input.drop.options.length > 1) input.drop.closest("label").hidden = false;

  function matches() {
    const wanted = {};
    for (const name of ["stage", "verdict", "status", "mode"]) if (input[name].value) wanted[name] = Number(input[name].value);
    const step = input.step.value === "" ? null : Number(input.step.value);
    const drop = input.drop.value, least = parseFloat(input.least.value), most = parseFloat(input.most.value);
    const text = input.text.value.trim().toLowerCase(), hits = [];
    const inPrompt = text ? prompts.map((row) => row.slice(0, 4).some((part) => String(part).toLowerCase().includes(text))) : null;
    for (let n = 0; n < count; n++) {
      if (step !== null && columns.step[n] !== step) continue;
      let passes = true;
      for (const name in wanted) if (columns[name][n] !== wanted[name]) { passes = false; break; }
      if (!passes) continue;
      if (drop === "trained" ? columns.drop[n] !== undropped || columns.group[n] === null : drop && columns.drop[n] !== Number(drop)) continue;
      const reward = columns.reward[n];
      if (!Number.isNaN(least) && (reward === null || reward < least)) continue;
      if (!Number.isNaN(most) && (reward === null || reward > most)) continue;
      if (text && !inPrompt[columns.prompt[n]]) {
        const { text: completion, answer } = record(n);
        if (!completion.toLowerCase().includes(text) && !(answer ?? "").toLowerCase().includes(text)) continue;
      }
      hits.push(n);
    }
    const order = input.order.value;
    if (order) {
      const sign = order.startsWith("-") ? -1 : 1, column = columns[order.replace("-", "")];
      hits.sort((a, b) => (column[a] === null) - (column[b] === null) || sign * (column[a] - column[b]) || a - b);
    }
    return hits;
  }

  const places = (n) => {
    const said = [];
    if (index.stages.length > 1) said.push(index.stages[columns.stage[n]]);
    if (columns.step[n] !== null) said.push(`step ${columns.step[n]}`);
    if (columns.group[n] !== null) said.push(`group ${columns.group[n]}`);
    if (columns.sample[n] !== null) said.push(`sample ${columns.sample[n]}`);
    const mode = index.modes[columns.mode[n]];
    if (mode && mode !== "training") said.push(mode);
    return said.join(", ");
  };
  const badge = (n) => {
    const verdict = index.verdicts[columns.verdict[n]];
    return make("span", { class: `badge ${verdict}` }, verdict);
  };

  function row(n, at) {
    const prompt = promptOf(n), first = prompt.images.length ? image(prompt.images[0]) : null;
    const picture = first?.src ? make("img", { src: first.src, alt: "", loading: "lazy", class: Math.max(first.w, first.h) <= 64 ? "tiny" : null }) : make("span", { class: "none" });
    const middle = make("div", { style: "min-width:0" }, make("div", { class: "snip" }, prompt.question || prompt.id), make("div", { class: "from" }, places(n)));
    const reward = columns.reward[n];
    const score = make("div", { class: "score" }, badge(n), make("div", {}, reward === null ? "" : shown(reward)));
    return make("li", { role: "option", "aria-selected": at === place ? "true" : "false", onclick: () => select(at, true) }, picture, middle, score);
  }

  function list() {
    const page = Math.floor(place / PAGE), begin = page * PAGE, pages = Math.max(1, Math.ceil(found.length / PAGE));
    byId("list").replaceChildren(...found.slice(begin, begin + PAGE).map((n, at) => row(n, begin + at)));
    byId("page-at").textContent = `page ${page + 1} of ${pages}`;
    byId("page-back").disabled = page === 0;
    byId("page-on").disabled = page >= pages - 1;
  }

  function refresh() {
    found = matches();
    place = 0;
    const right = index.verdicts.indexOf("right"), wrong = index.verdicts.indexOf("wrong");
    const judged = found.filter((n) => columns.verdict[n] === right || columns.verdict[n] === wrong);
    const share = judged.filter((n) => columns.verdict[n] === right).length / judged.length;
    const drops = new Map();
    for (const n of found) {
      const reason = index.drops[columns.drop[n]];
      if (reason) drops.set(reason, (drops.get(reason) ?? new Set()).add(`${columns.stage[n]} ${columns.group[n]}`));
    }
    const said = [...drops].sort((a, b) => b[1].size - a[1].size).map(([reason, groups]) => `${reason} ${groups.size}`);
    byId("found").textContent = `${found.length} of ${count} completions` + (judged.length ? `, ${(100 * share).toFixed(1)} % right` : "")
      + (said.length ? `; dropped groups: ${said.join(", ")}` : "");
    list();
    detail();
  }

  function select(at, reveals = false) {
    if (at < 0 || at >= found.length) return;
    const turns = Math.floor(at / PAGE) !== Math.floor(place / PAGE);
    place = at;
    if (turns) list();
    [...byId("list").children].forEach((item, n) => item.setAttribute("aria-selected", n === at % PAGE ? "true" : "false"));
    byId("list").children[at % PAGE].scrollIntoView({ block: "nearest" });
    detail();
    if (reveals && matchMedia("(max-width: 800px)").matches) byId("detail").scrollIntoView();
  }

  function pictures(images) {
    return make("div", { class: "pictures" }, ...images.map((number) => {
      const one = image(number);
      if (!one.src) return make("div", { class: "gone" }, one.name, make("br"), one.why);
      const isTiny = Math.max(one.w, one.h) <= 64;
      return make("img", { src: one.src, alt: `image of ${one.w} x ${one.h} pixels`, class: isTiny ? "tiny" : null, width: isTiny ? one.w * 4 : null });
    }));
  }

  const block_of = (title, text) => [make("h3", {}, title), make("p", { class: "text" }, text)];

  function detail() {
    const box = byId("detail");
    if (!found.length) { box.replaceChildren(make("p", { class: "quiet" }, "No completion passes the filters.")); return; }
    const n = found[place], one = record(n), prompt = promptOf(n), wasOpen = box.querySelector("details")?.open ?? false;
    const drop = index.drops[columns.drop[n]], status = index.statuses[columns.status[n]];
    const head = make("div", {}, make("b", {}, places(n)), " ", badge(n), one.isCutOff ? make("span", { class: "badge unscorable" }, "cut off") : null,
      drop ? make("span", { class: "badge" }, `group dropped: ${drop}`) : null);
    const id = make("p", { class: "quiet" }, [prompt.dataset, prompt.id].filter(Boolean).join(", "));
    const pairs = make("div", { class: "pairs" });
    const pair = (name, value) => pairs.append(make("div", {}, make("span", {}, name), make("b", {}, value)));
    pair("answer", one.answer === null ? "(none found)" : one.answer);
    pair("reference", prompt.reference);
    pair("reward", shown(columns.reward[n]));
    index.parts.forEach((name, k) => { if (one.parts[k] !== undefined) pair(`reward/${name}`, shown(one.parts[k])); });
    if (columns.group[n] !== null) pair("advantage", columns.advantage[n] === null ? "did not train" : shown(columns.advantage[n]));
    if (status && status !== "ok") pair("status", status);
    const completion = make("div", {}, make("h3", {}, "completion"));
    const text = (value) => make("p", { class: "text" }, value);
    if (one.span) {
      const [begin, end] = one.span, tokens = one.text.slice(begin, end).length;
      completion.append(text(one.text.slice(0, begin)),
        make("details", { class: "thought", open: wasOpen }, make("summary", {}, `thought, ${tokens} characters`), text(one.text.slice(begin, end))),
        text(one.text.slice(end)));
    } else completion.append(text(one.text || "(empty)"));
    const parts = [head, id, pictures(prompt.images), ...block_of("question", prompt.question), completion, make("h3", {}, "verdict"), pairs];
    if (one.reason) parts.push(...block_of("reason", one.reason));
    if (columns.group[n] !== null) parts.push(...siblings(n));
    box.replaceChildren(...parts);
    box.scrollTop = 0;
  }

  function siblings(n) {
    const own = [];
    for (let m = 0; m < count; m++) {
      if (columns.group[m] === columns.group[n] && columns.stage[m] === columns.stage[n] && columns.step[m] === columns.step[n]) own.push(m);
    }
    if (own.length < 2) return [];
    const buttons = own.map((m) => make("button", { type: "button", "aria-pressed": m === n ? "true" : "false", class: index.verdicts[columns.verdict[m]],
      onclick: () => { let at = found.indexOf(m); if (at < 0) { found.splice(place + 1, 0, m); at = place + 1; list(); } select(at); } },
      columns.advantage[m] === null ? shown(columns.reward[m]) : `${shown(columns.reward[m])} (${columns.advantage[m] > 0 ? "+" : ""}${shown(columns.advantage[m])})`));
    return [make("h3", {}, "the group: reward (advantage)"), make("div", { class: "siblings" }, ...buttons)];
  }

  function clear() {
    for (const one of Object.values(input)) one.value = "";
  }

  browser.filter = (wanted) => {
    clear();
    if (wanted.stage !== undefined && index.stages.length > 1) input.stage.value = String(Math.max(0, index.stages.indexOf(wanted.stage)));
    if (wanted.step !== undefined) input.step.value = wanted.step;
    if (wanted.drop) input.drop.value = wanted.drop === "trained" ? "trained" : String(index.drops.indexOf(wanted.drop.replace("dropped: ", "")));
    refresh();
    if (wanted.drop && !input.drop.value) {
      found = [];
      byId("found").textContent = `no completion of a group with this end (${wanted.drop}) is in the page`;
      list();
      detail();
    }
    byId("rollouts").scrollIntoView();
    byId("list").focus({ preventScroll: true });
  };

  let waiting = 0;
  byId("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("f-clear").addEventListener("click", () => { clear(); refresh(); });
  byId("page-back").addEventListener("click", () => select((Math.floor(place / PAGE) - 1) * PAGE));
  byId("page-on").addEventListener("click", () => select((Math.floor(place / PAGE) + 1) * PAGE));
  const isVisible = () => byId("rollouts").getBoundingClientRect().top < innerHeight && byId("rollouts").getBoundingClientRect().bottom > 0;
  const keys = {
    j: () => select(place + 1), ArrowDown: () => select(place + 1), k: () => select(place - 1), ArrowUp: () => select(place - 1),
    l: () => select((Math.floor(place / PAGE) + 1) * PAGE), h: () => select((Math.floor(place / PAGE) - 1) * PAGE),
    t: () => { const thought = byId("detail").querySelector("details"); if (thought) thought.open = !thought.open; },
    "/": () => { input.text.focus(); input.text.select(); }, c: () => { clear(); refresh(); },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") byId("list").focus({ preventScroll: true });
      return;
    }
    const isArrow = event.key.startsWith("Arrow");
    if (!(event.key in keys) || (isArrow && event.target.id !== "list") || (event.key !== "/" && !isVisible())) return;
    event.preventDefault();
    keys[event.key]();
  });
  refresh();
})();
