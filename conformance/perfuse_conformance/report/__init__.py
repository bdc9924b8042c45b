"""What was found, as a page, a picture, JUnit XML or lines of text."""
