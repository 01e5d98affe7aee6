const dialog = document.getElementById("zoom");
const large = dialog.querySelector("img");
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.zoom");
  if (button) {
    const small = button.querySelector("img");
    large.src = small.src;
    large.alt = small.alt;
    large.className = small.className;
    dialog.querySelector("p").textContent = small.alt;
    dialog.showModal();
  } else if (event.target.closest("dialog")) {
    dialog.close();
  }
});
