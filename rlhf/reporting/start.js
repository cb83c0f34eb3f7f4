"use strict";
// Texts come from models and data. They reach the page by textContent alone, never as HTML.
const byId = (id) => document.getElementById(id);
const dataOf = (id) => JSON.parse(byId(id).textContent);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function shown(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return String(Math.round(value * 10000) / 10000);
}

// Others filter the rollouts through this; it stays empty where the page has none.
const browser = { filter: null };

(() => {
  const button = byId("theme");
  const asked = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("sailvl2-theme"); } catch { /* a file page may have no storage */ }
  const apply = () => {
    const theme = chosen ?? (asked.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
  };
  button.addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("sailvl2-theme", chosen); } catch { /* then it lasts as long as the page */ }
    apply();
  });
  asked.addEventListener("change", apply);
  apply();
  for (const fall of document.querySelectorAll(".fall")) {
    fall.addEventListener("click", () => browser.filter?.({ stage: fall.dataset.stage, step: fall.dataset.step }));
  }
  for (const drop of document.querySelectorAll(".drop")) {
    const end = drop.dataset.end;
    const group = end === "drawn" || end === "in flight" ? "" : end === "trained" ? "trained" : `dropped: ${end}`;
    drop.addEventListener("click", () => browser.filter?.({ stage: drop.dataset.stage, drop: group }));
  }
})();
