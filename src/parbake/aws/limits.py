"""Limits of AWS that more than one part keeps to."""

USER_DATA_LIMIT = 16 << 10
"""Bytes that EC2 takes as user data, before base64 (EC2 user guide, "Run commands at launch")."""
