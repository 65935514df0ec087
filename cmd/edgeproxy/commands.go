package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"edgeproxy/config"
	"edgeproxy/tlsterm"
)

// logLevels are those of log { level }.
var logLevels = []string{"debug", "info", "warn", "error"}

func newRunCommand() *cobra.Command {
	var o daemonOptions
	cmd := &cobra.Command{
		Use:   "run -c FILE|DIR",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground, from one HCL file or all *.hcl and *.hcl.json
files of a folder, in the order of their names.

Signals: SIGHUP reloads; SIGUSR1 reopens the log files; SIGTERM and SIGINT stop
accepting, wait for the live sessions and end (a second one: end now).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.logLevel != "" && !slices.Contains(logLevels, o.logLevel) {
				return usagef(cmd, "--log-level %q is not one of %s", o.logLevel, quotedList(logLevels))
			}
			if err := needConfig(cmd, o.configPath); err != nil {
				return err
			}
			o.stderr = cmd.ErrOrStderr()
			return runDaemon(cmd.Context(), o)
		},
	}
	configFlag(cmd, &o.configPath)
	cmd.Flags().StringVar(&o.logLevel, "log-level", "", "debug, info, warn or error, instead of what the file says")
	cmd.Flags().StringVar(&o.pidFile, "pid-file", "", "write the process id to this file, and remove it at the end")
	return cmd
}

func newCheckCommand() *cobra.Command {
	var path string
	var files bool
	cmd := &cobra.Command{
		Use:   "check -c FILE|DIR",
		Short: "Check a configuration and print all its errors",
		Long: `Check a configuration and print all its errors at once, each with the line it
stands on. The files it names for TLS are read as well; --files=false leaves that
out, for a machine that does not have them. Nothing is bound: a port in use shows
only when the daemon starts or reloads.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needConfig(cmd, path); err != nil {
				return err
			}
			c, diags := config.Load(path)
			if files && !diags.HasErrors() {
				checkFiles(c, diags)
			}
			if err := printDiagnostics(cmd, diags); err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", path, plural(diags.Errors(), "error"))
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %s\n", path, summary(c))
			return nil
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&files, "files", true, "read certificates, keys and whatever else the configuration names for TLS")
	return cmd
}

// checkFiles reads what `tls` blocks name, and adds what is wrong with it.
func checkFiles(c *config.Config, diags *config.Diagnostics) {
	attach := func(block, name string, err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				diags.Attach(block, name, e)
			}
		} else if err != nil {
			diags.Attach(block, name, err)
		}
	}
	for _, o := range c.TLS {
		attach("tls", o.Name, tlsterm.Check(o))
	}
	for _, u := range c.Upstreams {
		if u.TLS != nil {
			_, err := tlsterm.PrepareClient(u.Name, u.TLS, nil)
			attach("upstream", u.Name, err)
		}
	}
}

func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "", "the configuration: an HCL file, or a folder of *.hcl and *.hcl.json")
}

func needConfig(cmd *cobra.Command, path string) error {
	if path == "" {
		return usagef(cmd, "%s needs a configuration: -c FILE or -c DIR ('edgeproxy demo' needs none)", cmd.CommandPath())
	}
	return nil
}

// printDiagnostics prints the warnings of a valid configuration as well, and
// returns errReported if there are errors.
func printDiagnostics(cmd *cobra.Command, diags *config.Diagnostics) error {
	w := cmd.ErrOrStderr()
	if err := diags.Write(w, wantsColor(w), width(w)); err != nil {
		return err
	}
	if diags.HasErrors() {
		return errReported
	}
	return nil
}

// summary counts what a configuration holds.
func summary(c *config.Config) string {
	servers := 0
	for _, u := range c.Upstreams {
		servers += len(u.Servers)
	}
	return fmt.Sprintf("%s, %s, %s",
		plural(len(c.Listeners), "listener"), plural(len(c.Upstreams), "upstream"), plural(servers, "server"))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
