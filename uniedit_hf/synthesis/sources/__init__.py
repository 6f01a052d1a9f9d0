"""Sources of questions about images; each yields drafts and rejections in a fixed order."""
