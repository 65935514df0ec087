package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"edgeproxy/config"
)

// defaultAdmin is where `admin` listens in all our examples.
const defaultAdmin = "127.0.0.1:9901"

// reloadTimeout bounds the wait for an outcome. A reload parses, looks names
// up and binds sockets; none of that takes longer on a working machine.
const reloadTimeout = time.Minute

func newReloadCommand() *cobra.Command {
	var configPath, admin string
	cmd := &cobra.Command{
		Use:   "reload [-c FILE|DIR | --admin ADDR]",
		Short: "Make the running daemon read its configuration again, and print the outcome",
		Long: `Make the running daemon read its configuration again, as SIGHUP does, but wait
for the outcome and print it. When the new configuration has an error, the
daemon goes on with the one it has, and this command ends with 1.

The daemon is found by the address of its admin API: --admin, or the admin block
of -c, or ` + defaultAdmin + `.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if configPath != "" && admin != "" {
				return usagef(cmd, "-c and --admin exclude each other: both say where the admin API is")
			}
			if configPath != "" {
				c, diags := config.Load(configPath)
				if diags.HasErrors() { // warnings are the daemon's to log
					return printDiagnostics(cmd, diags)
				}
				if c.Admin.Address == "" {
					return fmt.Errorf("%s has no admin block, so there is nothing to ask; send SIGHUP to the daemon instead", configPath)
				}
				admin = c.Admin.Address
			}
			if admin == "" {
				admin = defaultAdmin
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), reloadTimeout)
			defer cancel()
			return requestReload(ctx, cmd, admin)
		},
	}
	configFlag(cmd, &configPath)
	cmd.Flags().StringVar(&admin, "admin", "", "address of the admin API: HOST:PORT or unix:/path")
	return cmd
}

// adminClient returns a client of the admin API at the address that the admin
// block gave, and the base of its URLs.
func adminClient(address string) (*http.Client, string, error) {
	network, target := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, target = "unix", path
	} else {
		host, port, err := net.SplitHostPort(strings.TrimPrefix(address, "http://"))
		if err != nil {
			return nil, "", fmt.Errorf("admin address %q is neither HOST:PORT nor unix:/path", address)
		}
		if ip := net.ParseIP(host); host == "" || host == "*" || ip != nil && ip.IsUnspecified() {
			host = "localhost" // listens on all addresses; ours is the nearest
		}
		target = net.JoinHostPort(host, port)
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, target)
		},
	}
	return &http.Client{Transport: transport}, "http://edgeproxy", nil
}

// explainDial says what to do about a daemon that does not answer.
func explainDial(err error, address string) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("nothing answers at %s; is edgeproxy running, with an admin block? Name another address with --admin, or the file with -c", address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: permission denied; use the daemon's user, or root", address)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer in time; the daemon's log tells what became of the reload", address)
	}
	return err
}

func requestReload(ctx context.Context, cmd *cobra.Command, address string) error {
	client, base, err := adminClient(address)
	if err != nil {
		return usageError{err, cmd}
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/reload", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return explainDial(err, address)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20)) // diagnostics of a huge file are long, not endless
	if err != nil {
		return explainDial(err, address)
	}
	return reportReload(cmd, res.StatusCode, body)
}

// reloadOutcome is the answer to POST /v1/reload.
type reloadOutcome struct {
	OK      bool   `json:"ok"`
	Message string `json:"message"` // what has changed
	Error   string `json:"error"`   // all diagnostics, a line each
}

func reportReload(cmd *cobra.Command, status int, body []byte) error {
	var o reloadOutcome
	if err := json.Unmarshal(body, &o); err != nil || !o.OK && o.Error == "" {
		return fmt.Errorf("is this edgeproxy's admin API? It answers %d (%s): %.200q", status, http.StatusText(status), body)
	}
	if o.OK {
		fmt.Fprintln(cmd.OutOrStdout(), cmp.Or(o.Message, "reloaded"))
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s\nedgeproxy: not reloaded, the running configuration stays in force\n", strings.TrimRight(o.Error, "\n"))
	return errReported
}
