//! What a test hears of its own thread, while others run.

use std::sync::LazyLock;

use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Subscriber};

/// Registered for as long as the tests run.
static ANOTHER: LazyLock<Dispatch> =
    LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));

/// Has `subscriber` hear what this thread traces, until the guard is dropped.
///
/// While one subscriber alone is registered, a place of a program that is reached for the first time asks that of the thread which
/// reached it; if that thread has none, nobody hears of the place from then on (`Rebuilder::JustOne` of tracing-core). Tests run beside
/// each other: so there is always another one, which nothing is sent to.
pub(crate) fn heard_by(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    LazyLock::force(&ANOTHER);
    tracing::subscriber::set_default(subscriber)
}
