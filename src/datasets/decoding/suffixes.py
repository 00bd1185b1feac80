"""What names of video and image files end in: the one list for folders, lists made of them, and shards.

FFmpeg and Pillow know a file by its contents. FFmpeg names few suffixes itself (none for MPEG or Windows Media) and
Pillow many that are no pictures, so these are lists.
"""

from __future__ import annotations

# Lower case, without the dot. The usual ones first: of several files of one name `convert` takes the first.
VIDEO_SUFFIXES: tuple[str, ...] = (
    *("mp4", "webm", "mkv", "avi", "mov", "mpg", "mpeg", "m4v", "ts"),
    *("3gp", "3g2", "3gpp", "f4v", "ismv", "mj2", "qt", "insv"),  # ISO media and QuickTime
    *("mk3d", "ogv", "ogg", "ogm", "nut", "ivf"),
    *("flv", "wmv", "asf", "wtv", "dvr-ms", "rm", "rmvb", "divx", "xvid", "amv", "nsv"),
    *("mts", "m2ts", "m2t", "tod", "mod", "vob", "mpe", "mpv", "m1v", "m2v", "mp2v"),  # MPEG program and transport
    *("mxf", "gxf", "lxf", "dv", "dif"),  # broadcast
    *("mjpg", "mjpeg", "h261", "h263", "h264", "264", "avc", "h265", "265", "hevc", "h266", "266", "vvc", "av1", "obu"),
    *("y4m", "gif", "apng", "swf", "bik", "bk2", "smk", "roq"),
)

IMAGE_SUFFIXES: tuple[str, ...] = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "webp", "avif", "tif", "tiff"),
    *("ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "jpx", "tga", "pcx", "sgi", "psd", "ico"),
)
