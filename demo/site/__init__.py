"""A small learning platform around the router: what a web app of your own would be to it."""
