//! A registry as a marketplace: which images it offers.
//!
//! Every listing must be whole, for oned forgets what is missing: a registry that does not answer fails it. An image that
//! is gone, or for other machines, is left out and told.

use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{
    Cancel, Error as StoreError, Limits, Patience, Registries, RegistriesConfig, RegistryFault,
    RegistryReference,
};
use ocivisor_opennebula::market::{App, MAX_APPS, Market};

use crate::config::Config;
use crate::fault::{clip, from_store};

/// Seconds that one question may take. A listing has many.
const PATIENCE: u64 = 20;
/// How long a listing may take: the next is asked for after ten minutes.
const LISTING: Duration = Duration::from_secs(300);

/// Asks the registry for all of the marketplace's images. `log` hears what is left out.
///
/// # Errors
/// The registry does not answer, or offers nothing.
pub fn list(market: &Market, config: &Config, log: &mut dyn FnMut(&str)) -> Result<Vec<App>> {
    list_within(market, config, LISTING, log)
}

/// The same within another time.
///
/// # Errors
/// As [`list`]. `Timeout`.
pub fn list_within(
    market: &Market,
    config: &Config,
    time: Duration,
    log: &mut dyn FnMut(&str),
) -> Result<Vec<App>> {
    let deadline = Instant::now() + time;
    let hasty =
        RegistriesConfig { attempts: 2, deadline_seconds: PATIENCE, ..config.registries.clone() };
    let half = Duration::from_secs(PATIENCE / 2);
    let patience = Patience { connect: half, answer: half, ..Patience::default() };
    let registries = Registries::new(hasty).with_patience(patience);
    let names = if market.apps.is_empty() {
        let host = market.registry.parse().map_err(|e| from_store(&e))?;
        registries.catalog(&host, MAX_APPS, &Cancel::new()).map_err(|e| {
            from_store(&e).hint("many registries do not tell what they have: name images in APPS")
        })?
    } else {
        market.apps.clone()
    };
    let mut apps: Vec<App> = Vec::new();
    let all = names.len();
    for (done, name) in names.into_iter().enumerate() {
        if Instant::now() >= deadline {
            let text = format!(
                "{} told of {done} of {all} images within {} s",
                market.registry,
                time.as_secs()
            );
            return Err(Error::new(ErrorKind::Timeout, text).hint("name fewer images in APPS"));
        }
        let source = format!("docker://{}/{name}", market.registry);
        let reference: RegistryReference = match source.parse() {
            Ok(reference) => reference,
            Err(error) => {
                log(&format!("leaves {:?} out: {error}", clip(&name)));
                continue;
            }
        };
        match registries.inspect(&reference, &Limits::default(), &Cancel::new()) {
            Ok(found) => {
                let size = found.size.div_ceil(1 << 20).max(config.images.disk_mb);
                apps.push(App {
                    name,
                    source,
                    digest: found.manifest_digest.to_string(),
                    size_mb: size,
                    architecture: found.config.architecture,
                });
            }
            Err(
                error @ (StoreError::Platform { .. }
                | StoreError::Document { .. }
                | StoreError::Registry { why: RegistryFault::NotFound, .. }),
            ) => log(&format!("leaves {:?} out: {error}", clip(&name))),
            Err(error) => return Err(from_store(&error)),
        }
    }
    if apps.is_empty() {
        let text = format!("{} offers no image for this machine", market.registry);
        return Err(Error::new(ErrorKind::NotFound, text)
            .hint("name some in APPS, with their tags; the log says what was left out"));
    }
    Ok(apps)
}
