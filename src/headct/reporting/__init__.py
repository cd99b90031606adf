"""Numbers and pictures become one self-contained HTML page: the pieces that every page shares.

A page opens from disk, offline, on a phone and on paper, and the same input gives the same bytes. Pieces return
`markupsafe.Markup`; any other string that reaches a page is escaped.
"""
