//! Integration tests.

mod vercel;
