//! reconciled.
