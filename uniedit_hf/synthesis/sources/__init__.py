"""Where questions about pictures come from: every source yields drafts and rejections, in a fixed order."""
