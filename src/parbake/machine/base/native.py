"""Native programs in a foreign root: most of what installs packages need not be emulated.

Maintainer scripts mostly run shells, sed, perl and the like, whose results are the same on any architecture. While
packages are installed, those of this machine's architecture, from the same suite, stand in the place of the root's own.
dpkg is told by diversions (dpkg-divert(1)): what a package brings goes to another name until the end. All happens by
renames and links below the root: nothing is mounted, and a build that is killed leaves no more than its work folder.

Still emulated: what tells the architecture or goes by it (dpkg, uname), and all programs that are not listed here. The
initial RAM disk is made once, at the end, by scripts whose programs are native; those that it holds are not listed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

_UPDATE_INITRD = "usr/sbin/update-initramfs"  # does nothing until the end: see _INITRD
LOADERS = {
    "amd64": ("usr/lib/x86_64-linux-gnu", "usr/lib64/ld-linux-x86-64.so.2"),
    "arm64": ("usr/lib/aarch64-linux-gnu", "usr/lib/ld-linux-aarch64.so.1"),
}
"""Where libraries and the program that loads them are, for each architecture of which programs can be native."""
_PACKAGES = (
    "coreutils", "cpio", "dash", "debianutils", "diffutils", "dpkg", "findutils", "grep", "gzip", "mawk", "openssl",
    "perl-base", "python3-minimal", "sed", "tar", "zstd",
)  # fmt: skip
_EMULATED = ("arch", "dpkg", "dpkg-divert", "dpkg-query", "dpkg-statoverride", "dpkg-trigger", "nproc", "uname")

# Interpreters load extension modules, which are the root's: perl is native as long as the root has none but those of
# perl-base, Python for compiling alone, to what is the same on any architecture.
_PERL = """\
#!/bin/sh
for extensions in /usr/lib/*/perl /usr/lib/*/perl5; do
	if [ -e "$extensions" ]; then exec /usr/bin/{name}.foreign "$@"; fi
done
exec /.native/usr/libexec/{name} "$@"
"""
_PYTHON = """\
#!/bin/sh
case "$*" in
"/usr/bin/py3compile "* | *"-m py_compile -" | *"/usr/lib/{name}/py_compile.py "* | \\
"-c import importlib.util; print(importlib.util.MAGIC_NUMBER)" | "-c import sys; print(sys.implementation.cache_tag)")
	exec /.native/usr/libexec/{name} "$@" ;;
esac
exec /usr/bin/{name}.foreign "$@"
"""
_NOTHING = "#!/bin/sh\n"

# $1 is the root; then come the folder with native programs, where their libraries and their loader are, and the list
# of paths to divert. dpkg's records of diversions have three lines: from, to, and the package (":": the administrator).
_DIVERT = r"""
set -e
mv "$2" "$1/.native"
cd "$1"
ln -s "/.native/$3" "$3"
mkdir -p "${4%/*}"
[ -e lib64 ] || ln -s usr/lib64 lib64
ln -s "/.native/$3/${4##*/}" "$4"
while read -r path; do
	if [ -e "$path" ]; then mv "$path" "$path.foreign"; fi
	ln ".native/$path" "$path"
	printf '/%s\n/%s.foreign\n:\n' "$path" "$path" >>var/lib/dpkg/diversions
done <"$5"
"""
# The initial RAM disk would have a folder for the loader, which is there for as long as programs are native. One that
# holds a native program, as a package of the user's may ask for, names that loader: it is made anew when all are gone.
_INITRD = r"""
set -e
cd "$1"
hook=etc/initramfs-tools/hooks/zz-native
cat >"$hook" <<END
#!/bin/sh
if rmdir "\$DESTDIR/usr/lib64" 2>/dev/null; then rm "\$DESTDIR/lib64"; fi
if grep -rqF "${4##*/}" "\$DESTDIR"; then : >/.native/held; fi
END
chmod 755 "$hook"
chroot . /usr/sbin/update-initramfs.foreign -c -k all
rm "$hook"
"""
# A package may never have come, and a path may be somebody else's by now.
_RESTORE = r"""
set -e
cd "$1"
while read -r path; do
	if [ "$path" -ef ".native/$path" ]; then rm "$path"; fi
	if [ -e "$path.foreign" ]; then mv "$path.foreign" "$path"; fi
done <"$5"
paste - - - <var/lib/dpkg/diversions | sed '/\.foreign\t:$/d' | tr '\t' '\n' >var/lib/dpkg/diversions.new
mv var/lib/dpkg/diversions.new var/lib/dpkg/diversions
held=
if [ -e .native/held ]; then held=yes; fi
rm -r .native "$3" "$4"
if rmdir usr/lib64 2>/dev/null; then rm lib64; fi
if [ "$held" ]; then
	rm boot/initrd.img-*
	chroot . /usr/sbin/update-initramfs -c -k all
fi
"""


def fetch(suite: str, architecture: str, folder: Path) -> list[str]:
    """Return mmdebstrap's command line that unpacks the programs for ``architecture`` into ``folder``."""
    return [
        "mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=extract",
        f"--architectures={architecture}", f"--include={','.join(_PACKAGES)}", suite, str(folder),
    ]  # fmt: skip


def prepare(folder: Path, architecture: str) -> tuple[str, str, str]:
    """Return three hooks of mmdebstrap, which put programs into the root, make its initial RAM disk, and take them out.

    The first is for the time before anything is set up; it moves ``folder``, which ``fetch`` has made, for
    ``architecture``, into the root.
    """
    paths = sorted({*programs(folder), *_stand_ins(folder)})
    listed = folder.with_name(f"{folder.name}.list")
    listed.write_text("".join(f"{path}\n" for path in paths))
    arguments = shlex.join([str(folder), *LOADERS[architecture], str(listed)])
    divert, make_initrd, restore = (
        f'sh -c {shlex.quote(script)} sh "$1" {arguments}' for script in (_DIVERT, _INITRD, _RESTORE)
    )
    return divert, make_initrd, restore


def programs(folder: Path) -> Iterable[str]:
    """Yield the paths of what runs natively: programs, not scripts. perl's second name has no stand-in."""
    for path in (*folder.glob("usr/bin/*"), *folder.glob("usr/sbin/*")):
        if path.name not in _EMULATED and not path.name.startswith("perl5") and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield str(path.relative_to(folder))


def _stand_ins(folder: Path) -> Iterable[str]:
    """Put scripts among the programs: interpreters that leave to the root's what is not for us, no initial RAM disk."""
    contents = {folder / _UPDATE_INITRD: _NOTHING}
    for script, pattern in ((_PERL, "perl"), (_PYTHON, "python3.*")):
        [program] = folder.glob(f"usr/bin/{pattern}")
        program.rename(folder / "usr/libexec" / program.name)
        contents[program] = script.format(name=program.name)
    for path, content in contents.items():
        path.write_text(content)
        path.chmod(0o755)
        yield str(path.relative_to(folder))
