use std::sync::Arc;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// A wire to the database that can be cut in the middle of a statement.
pub struct Wire {
    port: u16,
    cut: Arc<Notify>,
}

impl Wire {
    /// Listens, and passes everything on to 127.0.0.1:`port` and back.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let own = listener.local_addr().expect("address").port();
        let cut = Arc::new(Notify::new());
        let cut_all = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let cut = cut_all.clone();
                tokio::spawn(async move {
                    let pass = async {
                        let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
                        server.set_nodelay(true)?;
                        client.set_nodelay(true)?;
                        tokio::io::copy_bidirectional(&mut client, &mut server).await
                    };
                    tokio::select! {
                        _ = cut.notified() => {}
                        _ = pass => {}
                    }
                });
            }
        });
        Self { port: own, cut }
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Drops every connection that is open.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}
