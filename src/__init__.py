"""Train, sample and compare generative models: AE, VAE, beta-VAE and DDPM from one command line."""
