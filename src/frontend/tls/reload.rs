//! Noticing that certificate files have changed.

use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Certificate, Material, Metrics, Resumption, Tls, TlsConfig, TlsError, remark, server_config};
use crate::runtime::{Clock, Tasks};

/// How often the files are compared with what is in use; reading a few kilobytes costs microseconds.
const INTERVAL: Duration = Duration::from_secs(2);

/// Keeps the TLS of one listener in step with its files.
pub(in crate::frontend) struct Reloader {
    tls: Arc<Tls>,
    config: TlsConfig,
    resumption: Resumption,
    /// What was found the last time, usable or not: each failure is reported once.
    found: Result<Material, String>,
    /// What is in use asks for clients of this CA.
    client_ca: Option<Vec<u8>>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Reloader {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Reloader {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// The file that cannot be used.
    pub(in crate::frontend) fn load(
        config: &TlsConfig,
        metrics: &Metrics,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, TlsError> {
        let material = Material::read(config)?;
        let certificates = material.certificates(config)?;
        let resumption = Resumption::new()?;
        let built = server_config(config, material.client_ca.as_deref(), &certificates, &resumption)?;
        note(&certificates, metrics, &**clock);
        Ok(Self {
            tls: Arc::new(Tls { current: RwLock::new(Arc::new(built)) }),
            config: config.clone(),
            resumption,
            client_ca: material.client_ca.clone(),
            found: Ok(material),
            metrics: metrics.clone(),
            clock: Arc::clone(clock),
        })
    }

    pub(in crate::frontend) fn tls(&self) -> Arc<Tls> {
        Arc::clone(&self.tls)
    }

    /// Looks at the files of these listeners again and again, and at once when asked.
    pub(in crate::frontend) async fn run(mut reloaders: Vec<Self>, asked: Arc<Notify>, tasks: Tasks) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = asked.notified() => {}
                () = tasks.draining() => return,
            }
            let looked = tasks.spawn_blocking(move || {
                for reloader in &mut reloaders {
                    reloader.look();
                }
                reloaders
            });
            match looked.await {
                Ok(back) => reloaders = back,
                Err(error) => {
                    tracing::error!(%error, "certificates are no longer reloaded");
                    return;
                }
            }
        }
    }

    fn look(&mut self) {
        let found = Material::read(&self.config).map_err(|error| error.to_string());
        if found == self.found {
            return;
        }
        self.found = found;
        let replaced = match &self.found {
            Ok(material) => self.replace(material).map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        match replaced {
            Ok((client_ca, resumption)) => {
                (self.client_ca, self.resumption) = (client_ca, resumption);
                self.metrics.reloads.with_label_values(&["loaded"]).inc();
                let certificates: Vec<_> = self
                    .config
                    .certificates
                    .iter()
                    .map(|files| files.certificate.display().to_string())
                    .collect();
                tracing::info!(certificates = certificates.join(", "), "certificates were reloaded");
            }
            Err(error) => {
                self.metrics.reloads.with_label_values(&["failed"]).inc();
                tracing::warn!(error, "changed certificates cannot be used; the old ones stay in use");
            }
        }
    }

    fn replace(&self, material: &Material) -> Result<(Option<Vec<u8>>, Resumption), TlsError> {
        let certificates = material.certificates(&self.config)?;
        // A session that another CA vouched for must not be resumed: its client would not be verified again.
        let resumption =
            if material.client_ca == self.client_ca { self.resumption.clone() } else { Resumption::new()? };
        let built = server_config(&self.config, material.client_ca.as_deref(), &certificates, &resumption)?;
        self.tls.replace(built);
        note(&certificates, &self.metrics, &*self.clock);
        Ok((material.client_ca.clone(), resumption))
    }
}

/// Shows when the certificates end, and says so when one has.
fn note(certificates: &[Certificate], metrics: &Metrics, clock: &dyn Clock) {
    for certificate in certificates {
        let seconds = i64::try_from(certificate.expires.as_millis() / 1000).unwrap_or(i64::MAX);
        metrics.expiry.with_label_values(&[&certificate.file.display().to_string()]).set(seconds);
        if let Some(remark) = remark(certificate, clock.now()) {
            tracing::warn!("{remark}");
        }
    }
}
