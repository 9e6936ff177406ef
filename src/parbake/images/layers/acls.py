"""What the kernel does with POSIX ACLs when a file is made, given a mode, or given an ACL.

Source: Linux ``fs/posix_acl.c`` (``posix_acl_create``, ``__posix_acl_chmod``, ``posix_acl_update_mode``).
"""

from __future__ import annotations

import stat
from typing import Final

from parbake.core.errors import LayerError
from parbake.core.filetree import ACL_HEAD, Acl, FileNode, acl_value, parse_acl

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_SIMPLE: Final = frozenset({_USER_OBJ, _GROUP_OBJ, _OTHER})


def with_mode(node: FileNode, mode: int) -> None:
    """Do what ``chmod`` does: the mode (12 bits), and the same in an access ACL."""
    node.mode = stat.S_IFMT(node.mode) | mode
    if node.xattrs and ACCESS in node.xattrs:
        acl = _parse(node.xattrs[ACCESS])
        node.xattrs = {**node.xattrs, ACCESS: acl_value(_masked(acl, mode))}


def with_acl(node: FileNode, key: bytes, value: bytes) -> None:
    """Do what setting an ACL does: an access ACL also sets the permissions; raises LayerError.

    One in another version of the format, and any of a symbolic link, is passed over.
    """
    if len(value) >= 4 and value[:4] != ACL_HEAD:
        return
    attributes = {name: old for name, old in (node.xattrs or {}).items() if name != key}
    acl = _parse(value)
    if node.is_link:
        return
    if key == DEFAULT and not node.is_folder:
        if acl:
            raise LayerError("a default ACL on something other than a folder")
    elif acl:
        _check(acl)
        if key == ACCESS:
            node.mode = stat.S_IFMT(node.mode) | node.mode & 0o7000 | _mode_of(acl)
        if key == DEFAULT or any(tag not in _SIMPLE for tag, _, _ in acl):
            attributes[key] = acl_value(acl)
    node.xattrs = attributes or None


def inherited(folder: FileNode, child: FileNode) -> None:
    """Give a new file what its folder's default ACL hands down."""
    if not folder.xattrs or DEFAULT not in folder.xattrs:
        return
    value = folder.xattrs[DEFAULT]
    acl = _parse(value)
    attributes = dict(child.xattrs or {})
    if any(tag not in _SIMPLE for tag, _, _ in acl):
        attributes[ACCESS] = value
    if child.is_folder:
        attributes[DEFAULT] = value
    child.xattrs = attributes or None


def _parse(value: bytes) -> Acl:
    return parse_acl(value) if value else []


def _check(acl: Acl) -> None:
    """Refuse what the kernel refuses (``posix_acl_valid``)."""
    tags = [tag for tag, _, _ in acl]
    order = [_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER]
    places = [order.index(tag) for tag in tags if tag in order]
    named = _USER in tags or _GROUP in tags
    single = all(tags.count(tag) == 1 for tag in _SIMPLE) and tags.count(_MASK) <= 1
    if len(places) != len(tags) or places != sorted(places) or not single or (named and _MASK not in tags):
        raise LayerError("a POSIX ACL that Linux does not accept")
    if any(permissions & ~7 for _, permissions, _ in acl):
        raise LayerError("a POSIX ACL with unknown permissions")


def _mode_of(acl: Acl) -> int:
    found = {tag: permissions for tag, permissions, _ in acl}
    group = found.get(_MASK, found.get(_GROUP_OBJ, 0))
    return found.get(_USER_OBJ, 0) << 6 | group << 3 | found.get(_OTHER, 0)


def _masked(acl: Acl, mode: int) -> Acl:
    has_mask = any(tag == _MASK for tag, _, _ in acl)
    group_tag = _MASK if has_mask else _GROUP_OBJ
    new = {_USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, _OTHER: mode & 7}
    return [(tag, new.get(tag, permissions), who) for tag, permissions, who in acl]
