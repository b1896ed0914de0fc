//! Machines that cannot be restored.
