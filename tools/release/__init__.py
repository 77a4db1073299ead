"""Writes the files of a release: `make release` (docs/releasing.md).

    source     version, commit and date of what is released; refuses what is not releasable
    build      the executables: the self-contained files and the small zipapp
    layout     what a node gets from a package, and the scripts that run there
    tarball, debian, rpm, image
               each form from the same executables
    components, sbom, provenance
               what is inside, under which licences, and from which sources it was made
    contents   looks into every file, through archives and packages

The same commit and the same tools give the same bytes: times are the commit's, owners are root, and
names are sorted.
"""
