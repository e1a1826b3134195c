// An API server without a cluster: etcd in the same process, nothing that runs pods. Arguments are those of kube-apiserver; etcd's folder and ports
// come from the environment.
package main

import (
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	clients := must(url.Parse(os.Getenv("ETCD_CLIENT_URL")))
	peers := must(url.Parse(os.Getenv("ETCD_PEER_URL")))
	config := embed.NewConfig()
	config.Dir = os.Getenv("ETCD_DATA")
	config.LogLevel = "error"
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clients}, []url.URL{*clients}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peers}, []url.URL{*peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// What is tested lives for a minute.
	config.UnsafeNoFsync = true
	etcd := must(embed.StartEtcd(config))
	select {
	case <-etcd.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		fmt.Fprintln(os.Stderr, "etcd is not ready after 30 s")
		os.Exit(1)
	}
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}
