"""A decoder on a device: weights, working memory and paged memories there, and steps in captured graphs."""
