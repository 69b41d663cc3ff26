"use strict";

// The theme: what the system asks for, until the button is pressed.
{
  const button = document.getElementById("theme");
  const asked = window.matchMedia("(prefers-color-scheme: dark)");
  const now = () => document.documentElement.dataset.theme || (asked.matches ? "dark" : "light");
  const label = () => { button.textContent = now() === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = now() === "dark" ? "light" : "dark";
    label();
  });
  asked.addEventListener("change", label);
  label();
}

// Radio buttons that choose which of several parts is shown.
const chooses = (fieldset, parts, name) => {
  document.getElementById(fieldset)?.addEventListener("change", event => {
    for (const part of document.querySelectorAll(parts)) part.hidden = part.dataset[name] !== event.target.value;
  });
};
chooses("rois", "#close-ups [data-roi]", "roi");
chooses("judges", "table[data-judge]", "judge");

window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});

const source = document.getElementById("gallery-data");
if (source) gallery(JSON.parse(source.textContent));

function gallery(data) {
  const byId = id => document.getElementById(id);
  const [stage, grid, query] = ["stage", "grid", "query"].map(byId);
  const edges = [byId("edge-1"), byId("edge-2")];
  const layers = ["under", "between", "over"].map(byId);
  const tags = ["under", "between", "over"].map(name => byId(`tag-${name}`));
  const state = {
    run: data.runs[0], dataset: data.runs[0].dataset, sample: 0, feature: data.first,
    listed: [],       // positions in data.images of what the filters let through, in order
    at: null,         // the one that is chosen
    edges: [50, 50],  // percent from the left: where the occluded picture begins, and where the reconstruction does
  };

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const embedded = content => content ? `data:image/webp;base64,${content}` : "data:,";
  const number = value => value === null || value === undefined ? "–" : value.toFixed(2);
  const score = (run, at, feature = state.feature) => run.scores[feature]?.[at];
  const decoded = (run, at, sample) => run.pictures[at]?.[sample];
  const occluded = () => state.dataset === "occluded";

  // What a picture is, in words.
  const describe = {
    original: image => `Original test image ${image.i}` + (image.said ? `: ${image.said}` : ""),
    occluded: image => `Test image ${image.i} with a part hidden by an occluder`,
    decoded: (run, at, sample) => `${run.alt}, sample ${sample + 1}`
      + (state.feature ? `, identification (${state.feature}) ${number(score(run, at))}` : ""),
  };

  // Controls.
  const choice = (fieldset, name, options, chosen) => {
    const box = element("div", { class: "choice" });
    for (const [value, text] of options) {
      const input = element("input", { type: "radio", name, value });
      input.checked = String(value) === String(chosen);
      box.append(element("label", {}, input, text));
    }
    byId(fieldset).querySelector(".choice")?.remove();
    byId(fieldset).append(box);
  };
  const options = (select, pairs, chosen) => {
    byId(select).replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
    byId(select).value = chosen;
  };
  const runsOf = dataset => data.runs.filter(run => run.dataset === dataset);
  const kinds = { result: "", recovery: "recovery check: ", control: "control: " };

  function controls() {
    const sets = [["nsd", "Whole"], ["occluded", "Occluded"]].filter(([name]) => runsOf(name).length);
    choice("datasets", "dataset", sets, state.dataset);
    options("run", runsOf(state.dataset).map(run => [run.name, kinds[run.kind] + run.label]), state.run.name);
    choice("samples", "sample", Array.from({ length: state.run.samples }, (_, k) => [k, k + 1]), state.sample);
    const features = data.features.filter(name => state.run.scores[name]);
    if (!features.includes(state.feature)) {
      state.feature = features.includes(data.first) ? data.first : features[0] || null;
    }
    options("feature", features.length ? features.map(name => [name, name]) : [["", "none yet"]], state.feature || "");
  }

  function setRun(run, sample = 0) {
    state.run = run;
    state.dataset = run.dataset;
    state.sample = Math.min(sample, run.samples - 1);
    state.edges = occluded() ? [34, 67] : [50, 50];
    controls();
    list();
  }

  // The shelf of all images that the filters let through: a listbox with one stop for Tab.
  function list(focus = false) {
    const [low, high] = byId("band").value.split(" ").map(Number);
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const order = byId("order").value;
    const fits = at => {
      if (!decoded(state.run, at, 0)) return false;
      const value = score(state.run, at);
      if (byId("band").selectedIndex && !(value >= low && (value < high || high === 1))) return false;
      const image = data.images[at];
      const text = `${image.i} ${image.said || ""} ${image.told[state.dataset] || ""}`.toLowerCase();
      return words.every(word => /^\d+$/.test(word) ? Number(word) === image.i : text.includes(word));
    };
    state.listed = [...data.images.keys()].filter(fits);
    if (order !== "index") {
      const sign = order === "best" ? -1 : 1;
      state.listed.sort((a, b) => sign * ((score(state.run, a) ?? 0) - (score(state.run, b) ?? 0)) || a - b);
    }
    grid.replaceChildren(...state.listed.map(card));
    byId("count").textContent = `${state.listed.length} of ${data.images.length} images`
      + (state.listed.length ? ": left half original, right half decoded" : ": no image fits the filter");
    choose(state.listed.includes(state.at) ? state.at : state.listed[0] ?? null, focus);
  }

  function card(at) {
    const image = data.images[at];
    const value = score(state.run, at);
    const made = element("div", {
      class: "card", role: "option", tabindex: "-1", "data-at": at, "aria-selected": "false",
      "aria-label": `${describe.original(image)}. Identification ${number(value)}` },
    element("img", { src: embedded(image.original), alt: describe.original(image) }),
    element("img", { class: "half", src: embedded(decoded(state.run, at, state.sample)),
      alt: describe.decoded(state.run, at, state.sample) }));
    if (value !== undefined) made.append(element("span", { class: "score" }, number(value)));
    return made;
  }

  function choose(at, focus = false) {
    state.at = at;
    for (const each of grid.children) {
      const chosen = Number(each.dataset.at) === at;
      each.setAttribute("aria-selected", chosen);
      each.tabIndex = chosen ? 0 : -1;
      if (chosen) {
        if (focus) each.focus({ preventScroll: true });
        const [top, bottom] = [each.offsetTop - grid.offsetTop, each.offsetTop - grid.offsetTop + each.offsetHeight];
        if (top < grid.scrollTop) grid.scrollTop = top - 6;
        if (bottom > grid.scrollTop + grid.clientHeight) grid.scrollTop = bottom - grid.clientHeight + 6;
      }
    }
    show();
  }

  // The picture with its edges.
  function show() {
    const there = state.at !== null;
    stage.hidden = byId("about").hidden = !there;
    byId("position").textContent = there ? `${state.listed.indexOf(state.at) + 1} of ${state.listed.length}` : "";
    if (!there) return;
    const image = data.images[state.at];
    const middle = occluded() && image.occluded;
    layers[0].src = embedded(image.original);
    layers[0].alt = describe.original(image);
    layers[1].src = embedded(middle ? image.occluded : null);
    layers[1].alt = middle ? describe.occluded(image) : "";
    layers[2].src = embedded(decoded(state.run, state.at, state.sample));
    layers[2].alt = describe.decoded(state.run, state.at, state.sample);
    layers[1].hidden = edges[0].hidden = tags[1].hidden = !middle;
    edges[1].setAttribute("aria-label", `Edge between ${middle ? "occluded picture" : "original"} and reconstruction`);
    tags[2].textContent = { result: "decoded", recovery: "true features", control: "shuffled" }[state.run.kind];
    if (!middle) state.edges[0] = state.edges[1];
    place();
    about(image);
  }

  function place() {
    const [first, second] = state.edges;
    layers[1].style.clipPath = `inset(0 0 0 ${first}%)`;
    layers[2].style.clipPath = `inset(0 0 0 ${second}%)`;
    edges.forEach((edge, k) => {
      edge.style.left = `${state.edges[k]}%`;
      edge.setAttribute("aria-valuenow", Math.round(state.edges[k]));
      edge.setAttribute("aria-valuetext", `${Math.round(state.edges[k])}% from the left`);
    });
    const spans = [[0, first], [first, second], [second, 100]];
    tags.forEach((tag, k) => {
      tag.style.left = `calc(${spans[k][0]}% + 0.6rem)`;
      tag.classList.toggle("out", (spans[k][1] - spans[k][0]) / 100 * stage.clientWidth < tag.offsetWidth + 16);
    });
  }

  function move(k, to) {
    state.edges[k] = Math.min(100, Math.max(0, to));
    if (edges[0].hidden) state.edges[0] = state.edges[1];
    else if (k === 0) state.edges[1] = Math.max(...state.edges);
    else state.edges[0] = Math.min(...state.edges);
    place();
  }

  let dragged = null;
  const under = event => {
    const box = stage.getBoundingClientRect();
    return (event.clientX - box.left) / box.width * 100;
  };
  stage.addEventListener("pointerdown", event => {
    const at = under(event);
    const [first, second] = state.edges;
    const nearer = Math.abs(at - second) < Math.abs(at - first) || (first === second && at > second);
    dragged = edges[0].hidden || nearer ? 1 : 0;
    stage.setPointerCapture(event.pointerId);
    move(dragged, at);
    edges[dragged].focus({ preventScroll: true, focusVisible: false });
    event.preventDefault();
  });
  stage.addEventListener("pointermove", event => { if (dragged !== null) move(dragged, under(event)); });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { dragged = null; });
  edges.forEach((edge, k) => edge.addEventListener("keydown", event => {
    const step = event.shiftKey ? 10 : 2;
    const by = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10, PageUp: 10,
      Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    move(k, state.edges[k] + by);
  }));

  // Words, and every reconstruction of the image.
  function about(image) {
    const id = image.stimulus === null ? "" : `, 73k id ${image.stimulus}`;
    byId("about-title").textContent = `Image ${image.i}${id}`;
    const scores = data.features.filter(name => score(state.run, state.at, name) !== undefined)
      .map(name => element("span", { class: "one" }, `${name} ${number(score(state.run, state.at, name))}`));
    const words = [["given captions", [image.said]], ["decoded caption", [image.told[state.dataset]]],
      ["identification", scores]];
    byId("words").replaceChildren(...words.filter(([, parts]) => parts.length && parts[0])
      .flatMap(([name, parts]) => [element("dt", {}, name), element("dd", {}, ...parts)]));
    byId("film").replaceChildren(...runsOf(state.dataset).filter(run => decoded(run, state.at, 0)).map(run => {
      const cells = element("td");
      run.pictures[state.at].forEach((content, sample) => {
        if (!content) return;
        const shown = run === state.run && sample === state.sample;
        const picture = element("img", { src: embedded(content), alt: describe.decoded(run, state.at, sample) });
        const button = element("button", { type: "button", "aria-pressed": shown }, picture);
        button.addEventListener("click", () => {
          const [keptEdges, row] = [state.edges, [...byId("film").rows].findIndex(each => each.contains(button))];
          setRun(run, sample);
          state.edges = keptEdges;
          place();
          byId("film").rows[row]?.querySelectorAll("button")[sample]?.focus({ preventScroll: true });
        });
        cells.append(button);
      });
      const name = kinds[run.kind].replace(": ", " · ") + run.label;
      return element("tr", {}, element("th", { scope: "row" }, name), cells);
    }));
  }

  // Choosing an image: pointer, arrows, Home, End.
  grid.addEventListener("click", event => {
    const chosen = event.target.closest(".card");
    if (chosen) choose(Number(chosen.dataset.at), true);
  });
  function step(by, focus) {
    const to = Math.min(state.listed.length - 1, Math.max(0, state.listed.indexOf(state.at) + by));
    if (state.listed.length) choose(state.listed[to], focus);
  }
  grid.addEventListener("keydown", event => {
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity,
      End: Infinity }[event.key];
    if (by !== undefined) step(by, true);
    else if (event.key === "Enter" || event.key === " ") edges[1].focus({ focusVisible: true });
    else return;
    event.preventDefault();
  });
  byId("previous").addEventListener("click", () => step(-1, false));
  byId("next").addEventListener("click", () => step(1, false));

  document.addEventListener("keydown", event => {
    const typing = event.target.matches("input[type=search], select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      query.focus();
    } else if (event.key === "Escape" && byId("gallery").contains(event.target)) {
      if (event.target === query && query.value) {
        query.value = "";
        list();
      }
      grid.querySelector("[aria-selected=true]")?.focus();
      event.preventDefault();
    }
  });

  const form = byId("filters");
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => {
    const { name, id, value } = event.target;
    if (name === "dataset") {
      const twin = run => run.method === state.run.method && run.kind === state.run.kind;
      setRun(runsOf(value).find(twin) || runsOf(value)[0], state.sample);
    } else if (id === "run") {
      setRun(data.runs.find(run => run.name === value), state.sample);
    } else {
      if (name === "sample") state.sample = Number(value);
      if (id === "feature") state.feature = value || null;
      list();
    }
    if (name) form.querySelector(`input[name="${name}"]:checked`)?.focus();
  });
  window.addEventListener("resize", () => { if (state.at !== null) place(); });

  setRun(state.run);
}
