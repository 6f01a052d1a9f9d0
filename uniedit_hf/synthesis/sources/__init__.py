"""Where questions about images come from: every source yields drafts and rejections, in a fixed order."""
