"""The personalize job: one person's unlabelled videos in, that person's file of prompts out. Open `job` first."""
