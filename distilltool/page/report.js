"use strict";
{
  // Hover and arrow keys in the maps: the image under the pointer, and its class, light up in all of them.
  const maps = document.getElementById("maps"), said = document.getElementById("pointed");
  const nothing = said ? said.textContent : "";
  const marks = maps ? [...maps.querySelectorAll("use[data-i]")] : [];
  let at = -1;
  const point = (mark) => {
    at = mark ? Number(mark.dataset.i) : -1;
    maps.classList.toggle("dim", Boolean(mark));
    for (const one of marks) {
      const here = Boolean(mark) && one.dataset.i === mark.dataset.i;
      const [x, y] = [Number(one.getAttribute("x")), Number(one.getAttribute("y"))];
      if (here) one.setAttribute("transform", `translate(${x} ${y}) scale(2.2) translate(${-x} ${-y})`);
      else one.removeAttribute("transform");
      one.classList.toggle("this", here);
      one.classList.toggle("class", Boolean(mark) && mark.dataset.c !== "" && one.dataset.c === mark.dataset.c);
    }
    said.textContent = mark ? mark.querySelector("title").textContent : nothing;
  };
  if (maps) {
    maps.addEventListener("pointerover", (event) => {
      const mark = event.target.closest("use[data-i]");
      if (mark) point(mark);
    });
    maps.addEventListener("pointerleave", () => point(null));
    maps.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const map = event.target.closest(".map");
      if (event.key === "Escape") point(null);
      if (!step || !map) return;
      event.preventDefault();
      const here = [...map.querySelectorAll("use[data-i]")];
      const next = at < 0 ? (step > 0 ? 0 : here.length - 1) : (at + step + here.length) % here.length;
      point(here.find((one) => Number(one.dataset.i) === next));
    });
  }
  // What is folded away is printed too.
  const folded = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  addEventListener("beforeprint", () => { opened = folded(); for (const one of opened) one.open = true; });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
}
