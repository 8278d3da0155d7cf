"""Studies as they are stored: roots, folders, object storage, opening and following one."""
