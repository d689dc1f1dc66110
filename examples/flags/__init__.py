"""The flags world: country flags in seven drawing styles, and what an almanac says about them."""
