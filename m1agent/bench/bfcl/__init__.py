"""The Berkeley Function Calling Leaderboard, from a folder of its data: items, tools, scoring, and a run.

The data and the rules are those of https://github.com/ShishirPatil/gorilla (Apache-2.0), of which nothing is contained
here. What is measured is one reply to each question, its calls compared with the accepted ones.
"""
