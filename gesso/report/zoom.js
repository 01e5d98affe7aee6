"use strict";
const dialog = document.getElementById("zoom");
const large = dialog.querySelector("img");
const words = dialog.querySelector("p");
const [back, on] = [dialog.querySelector(".back"), dialog.querySelector(".on")];
let row = []; // the pictures that belong together, such as a prompt at every step
let at = 0;
let began = 0;

function show(number) {
  at = Math.min(Math.max(number, 0), row.length - 1);
  const small = row[at].querySelector("img");
  large.src = small.src;
  large.alt = small.alt;
  large.className = small.className;
  words.textContent = small.alt;
  // not "disabled": a button that has the focus would keep the arrow keys to itself
  back.setAttribute("aria-disabled", at === 0);
  on.setAttribute("aria-disabled", at === row.length - 1);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && button.classList.contains("zoom")) {
    const together = button.closest("tr, .ends, .thumbs, .sheet, .strip") || document;
    row = [...together.querySelectorAll("button.zoom")];
    show(row.indexOf(button));
    dialog.showModal();
  } else if (button === back || button === on) {
    show(at + (button === on ? 1 : -1));
  } else if (event.target.closest("dialog")) {
    dialog.close();
  }
});
dialog.addEventListener("close", () => row[at].focus());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    show(at + (event.key === "ArrowRight" ? 1 : -1));
    event.preventDefault();
  }
});
// A swipe turns to the next picture, unless two fingers are there or the page itself is enlarged, where it moves about.
const alone = (event) => event.touches.length < 2 && !(window.visualViewport && visualViewport.scale > 1.05);
large.addEventListener("touchstart", (event) => {
  began = alone(event) ? event.touches[0].clientX : NaN;
}, { passive: true });
large.addEventListener("touchmove", (event) => {
  if (alone(event)) event.preventDefault(); // else a tap after a quick swipe would only stop the swipe
});
large.addEventListener("touchend", (event) => {
  const moved = event.changedTouches[0].clientX - began;
  if (Math.abs(moved) > 40) show(at + (moved < 0 ? 1 : -1));
});
