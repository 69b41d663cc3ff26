"""What a reader sees: figures, the one-page report, the notebooks' plots.
Takes a working folder's artifacts.
Gives PDF and PNG figures, and report.html.
"""
