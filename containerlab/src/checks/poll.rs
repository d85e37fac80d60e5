//! Waiting for a condition of the lab, with a deadline.

use std::time::{Duration, Instant};

use super::check::Failure;

/// Time between two looks. Each look costs a process in the lab, so it is no shorter.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Looks until `look` succeeds, and returns how long that took with its value; after `patience` returns its last
/// failure.
///
/// # Errors
/// The failure of the last look.
pub(super) async fn until<T, F, Fut>(patience: Duration, mut look: F) -> Result<(T, Duration), Failure>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Failure>>,
{
    let start = Instant::now();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look().await {
            Ok(value) => return Ok((value, start.elapsed())),
            Err(mut failure) if start.elapsed() >= patience => {
                failure.expected = format!("within {} s: {}", patience.as_secs(), failure.expected);
                return Err(failure);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn looks_until_it_succeeds() {
        let looks = Cell::new(0);
        let (value, _) = until(Duration::from_secs(5), || async {
            looks.set(looks.get() + 1);
            if looks.get() == 3 { Ok(7) } else { Err(Failure::new("3 looks", "fewer", "")) }
        })
        .await
        .expect("the third look succeeds");
        assert_eq!((value, looks.get()), (7, 3));
    }

    #[tokio::test]
    async fn gives_up_with_the_last_failure() {
        let failure = until(Duration::ZERO, || async { Err::<(), _>(Failure::new("x", "y", "z")) })
            .await
            .expect_err("never succeeds");
        assert_eq!(failure.got, "y");
        assert!(failure.expected.starts_with("within 0 s"));
    }
}
