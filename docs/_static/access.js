// What the theme leaves out for those who read by ear or by keyboard.
document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  for (const caption of document.querySelectorAll(".caption[role='heading']")) caption.setAttribute("aria-level", "2");
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "pages of the site");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "on this page");

  function unseen(tag, words) {
    const element = document.createElement(tag);
    element.className = "unseen";
    element.textContent = words;
    return element;
  }
  if (!document.querySelector("h1")) document.querySelector("[role='main']")?.prepend(unseen("h1", document.title));
  for (const head of document.querySelectorAll("th")) {
    if (head.textContent.trim() === "") head.append(unseen("span", "name"));
  }

  // Rows of three cells and more become cards on a phone (site.css): each cell says what it is.
  for (const table of document.querySelectorAll("article table.docutils")) {
    const names = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    if (names.length < 3) continue;
    table.classList.add("rows");
    const roles = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", th: "columnheader", td: "cell" };
    for (const part of [table, ...table.querySelectorAll("thead, tbody, tr, th, td")]) {
      part.setAttribute("role", roles[part.localName]);
    }
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, place) => (cell.dataset.label = names[place] ?? ""));
    }
  }

  // Sphinx breaks long signatures with a list of descriptions that describe nothing.
  for (const list of document.querySelectorAll(".sig dl")) {
    const box = document.createElement("div");
    for (const part of [...list.children]) {
      const line = document.createElement("div");
      line.className = "sig-line";
      line.append(...part.childNodes);
      box.append(line);
    }
    list.replaceWith(box);
  }

  // What is wider than its place scrolls by keyboard once it can be reached.
  function reach() {
    for (const each of document.querySelectorAll("pre, .cell_output, .table-wrapper, .math")) {
      if (each.scrollWidth > each.clientWidth && each.clientWidth > 0) each.tabIndex = 0;
      else each.removeAttribute("tabindex");
    }
  }
  reach();
  addEventListener("resize", reach);
});
