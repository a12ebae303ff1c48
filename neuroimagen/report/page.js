// What the page can do only with JavaScript: sort and filter the trials, enlarge a picture. Without it all else works.
"use strict";
(() => {
  const form = document.getElementById("controls");
  const groups = document.getElementById("groups");
  const found = document.getElementById("found");
  const status = document.getElementById("status");
  const data = JSON.parse(document.getElementById("data").textContent);
  const metrics = Object.fromEntries(data.metrics.map((m) => [m.name, m]));

  // A trial may stand in several groups: the sorted list shows it once.
  const cards = new Map();
  for (const card of groups.querySelectorAll(".card")) {
    if (!cards.has(card.dataset.key)) cards.set(card.dataset.key, card.cloneNode(true));
  }
  found.className = "cards";

  const value = (key, metric, row) => metric && data.trials[key].values[metric]?.[row];
  const written = (metric, v) =>
    v == null ? "" : `${metric.title} ${(metric.scale * v).toFixed(metric.digits)}${metric.scale === 100 ? " %" : ""}`;

  function order(keys, by, metric, row) {
    const random = (a, b) => data.trials[a].random - data.trials[b].random;
    if (by === "random") return keys.sort(random);
    if (by === "key" || !metric) return keys.sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
    const sign = (metrics[metric].better === "lower" ? 1 : -1) * (by === "worst" ? -1 : 1);
    const median = data.medians[metric][row];
    const place = (key) => {
      const v = value(key, metric, row);
      if (v == null) return Infinity;
      return by === "median" ? Math.abs(v - median) : sign * v;
    };
    return keys.sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
  }

  function show(card, metric, row) { // the picture and the score in front are those of the row asked for
    const key = card.dataset.key;
    const wanted = [...card.querySelectorAll(".figures img")].find((i) => i.dataset.row === row && i.dataset.sample === "0");
    const drawn = card.querySelector("img[data-drawn]");
    if (wanted) [drawn.src, drawn.alt, drawn.title] = [wanted.src, wanted.alt, wanted.title];
    card.querySelector(".value").textContent = metric ? written(metrics[metric], value(key, metric, row)) : "";
  }

  function update() {
    const { order: by, metric, row, subject, label } = Object.fromEntries(new FormData(form));
    const plain = !by && !subject && !label;
    groups.hidden = !plain;
    found.hidden = plain;
    if (form.elements.metric) form.elements.metric.disabled = by === "random" || by === "key";
    const shownBy = metric || form.elements.metric?.value;
    if (plain) {
      for (const card of groups.querySelectorAll(".card")) show(card, shownBy, row);
      const which = row === data.full ? "" : ` The groups are still those of row ${data.full}.`;
      status.textContent = `Pictures and scores in front: row ${row}.${which}`;
      return;
    }
    const kept = [...cards.keys()].filter((key) => {
      const trial = data.trials[key];
      return (!subject || trial.subject === subject) && (!label || trial.label === label);
    });
    const sorted = order(kept, by || (metric ? "best" : "key"), shownBy, row);
    for (const key of sorted) show(cards.get(key), shownBy, row);
    found.replaceChildren(...sorted.map((key) => cards.get(key)));
    const select = form.elements.order;
    const name = by ? select.selectedOptions[0].text : metric ? "best first" : "trial key";
    const score = metric && !["random", "key"].includes(by) ? ` by ${metrics[metric].title}` : "";
    status.textContent =
      `${sorted.length} of the ${cards.size} trials on this page (the run has ${data.total}). ` +
      `Order: ${name}${score}, row ${row}, mean over samples; the picture in front is the first sample.`;
  }

  if (form.elements.row) form.elements.row.value = data.full;
  form.hidden = false;
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { form.elements.row.value = data.full; update(); }));

  // A click on any picture outside a trial's own summary shows it large; there the summary opens the trial.
  const zoom = document.getElementById("zoom");
  const large = zoom.querySelector("img");
  const caption = zoom.querySelector("p");
  let row = [];
  let at = 0;
  function put(to) {
    at = (to + row.length) % row.length;
    [large.src, large.alt, caption.textContent] = [row[at].src, row[at].alt, row[at].alt];
  }
  function enlarge(img) {
    row = [...img.closest(".figures, .strip").querySelectorAll("img")];
    put(row.indexOf(img));
    zoom.showModal();
  }
  for (const img of document.querySelectorAll("main img")) {
    if (!img.closest("summary")) [img.tabIndex, img.role] = [0, "button"];
  }
  for (const card of cards.values()) {
    for (const img of card.querySelectorAll(".figures img")) [img.tabIndex, img.role] = [0, "button"];
  }
  document.addEventListener("click", (event) => {
    const img = event.target.closest("main img");
    if (img && !img.closest("summary, dialog")) enlarge(img);
    else if (event.target === zoom) zoom.close();
  });
  document.addEventListener("keydown", (event) => {
    const img = event.target.closest?.("main img[role=button]");
    if (img && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      enlarge(img);
    } else if (zoom.open && event.key === "ArrowRight") put(at + 1);
    else if (zoom.open && event.key === "ArrowLeft") put(at - 1);
  });
})();
