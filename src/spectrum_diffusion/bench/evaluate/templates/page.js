"use strict";
(() => {
  const one = (query, inside = document) => inside.querySelector(query);
  const all = (query, inside = document) => [...inside.querySelectorAll(query)];

  // Table: a click on a title sorts by it, a second click reverses the order; empty values stay last.
  all("table.sortable").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((head, place) => one("button", head).addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.children[place].dataset.value;
      const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (up ? 1 : -1);
      const rows = all("tbody tr", table);
      rows.sort((a, b) => !value(a) - !value(b) || (value(a) && value(b) ? compare(value(a), value(b)) : 0));
      one("tbody", table).append(...rows);
    }));
  });

  // Plots: one metric at a time.
  const metric = one("#metric");
  if (metric) {
    const show = () => all("[data-metric]").forEach((group) => { group.hidden = group.dataset.metric !== metric.value; });
    metric.closest(".controls").hidden = false;
    metric.addEventListener("change", show);
    show();
  }

  // Viewer: the chosen image beside its reference.
  const viewer = one("#viewer");
  if (!viewer) return;
  const stage = one(".stage", viewer), view = one("#view"), cut = one("#cut"), frame = one("#frame");
  const choice = one("#choice");
  const buttons = all(".thumbs button");
  let chosen = null;

  const paint = (pane, source, image) => {
    const box = one("div", pane), frames = +image.dataset.frames;
    box.style.aspectRatio = `${image.dataset.width} / ${image.dataset.height}`;
    box.style.backgroundImage = `url("${source}")`;
    box.style.backgroundSize = `${100 * frames}% 100%`;
    box.style.backgroundPosition = `${frames > 1 ? (100 * frame.value) / (frames - 1) : 0}% 0`;
    box.classList.toggle("pixels", +image.dataset.width <= 160);
  };

  const draw = () => {
    const image = one("img", chosen), reference = one("img", chosen.closest(".case"));
    const frames = +image.dataset.frames, difference = view.value === "difference";
    frame.max = frames - 1;
    frame.closest("label").hidden = frames < 2;
    cut.closest("label").hidden = view.value !== "slider";
    stage.dataset.view = view.value;
    stage.style.setProperty("--cut", `${cut.value}%`);
    paint(one(".reference", stage), reference.src, reference);
    paint(one(".method", stage), difference ? image.dataset.difference || image.src : image.src, image);
    one(".reference figcaption", stage).textContent = reference.dataset.label;
    one(".method figcaption", stage).textContent =
      image.dataset.label + (!difference ? "" : image.dataset.difference ? ", difference" : ", no difference to show");
    one("#about").textContent = `${chosen.closest(".case").dataset.name}: ${chosen.dataset.about}`;
    buttons.forEach((button) => button.setAttribute("aria-pressed", button === chosen));
    choice.value = buttons.indexOf(chosen);
  };

  const choose = (button) => { chosen = button; draw(); };
  all(".case").forEach((section) => {
    const group = document.createElement("optgroup");
    group.label = section.dataset.name;
    all(".thumbs button", section).forEach((button) => {
      group.append(new Option(one("img", button).dataset.label, buttons.indexOf(button)));
    });
    choice.append(group);
  });
  buttons.forEach((button) => button.addEventListener("click", () => {
    choose(button);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    viewer.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
  }));
  choice.addEventListener("change", () => choose(buttons[choice.value]));
  [view, cut, frame].forEach((control) => control.addEventListener("input", draw));
  const drag = (event) => {
    if (view.value !== "slider" || (event.type === "pointermove" && !event.buttons)) return;
    const box = stage.getBoundingClientRect();
    cut.value = (100 * (event.clientX - box.left)) / box.width;
    draw();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  viewer.hidden = false;
  choose(buttons.find((button) => one("img", button).dataset.difference) || buttons[0]);
})();
