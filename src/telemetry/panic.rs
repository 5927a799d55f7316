//! A panic as one log line.
//!
//! The line names the place and the thread. The text is shown only when it is a literal of the program; text that was put
//! together at run time may hold a value, and no backtrace is written.

use std::any::Any;
use std::panic::PanicHookInfo;

/// Replaces the default hook, which would print the text and a backtrace.
pub(super) fn install_hook() {
    std::panic::set_hook(Box::new(report));
}

fn report(info: &PanicHookInfo<'_>) {
    let location = info
        .location()
        .map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(
        event = "panic",
        location,
        thread = thread.name().unwrap_or("unnamed"),
        "Panicked: {}",
        literal(info.payload())
    );
}

fn literal(payload: &(dyn Any + Send)) -> &'static str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("(text withheld, it may hold values)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_made_at_run_time_is_withheld() {
        let payload = |run: fn()| std::panic::catch_unwind(run).expect_err("it panics");
        let secret = || panic!("token {}", std::hint::black_box("hunter2"));
        assert_eq!(literal(&*payload(|| panic!("a literal"))), "a literal");
        assert!(!literal(&*payload(secret)).contains("hunter2"));
    }
}
