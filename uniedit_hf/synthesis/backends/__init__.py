"""Chat models and image editors. Each turns a request into a reply; what fails says whether asking again may help."""
