"""Generated conversations: everything m1-nano learns is made by the code in this folder."""
